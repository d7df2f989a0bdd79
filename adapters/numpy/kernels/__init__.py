"""Operators of the NumPy graph, as ONNX defines them, vectorised.

Importing this package fills the table.
"""

from . import (
    activations,
    attention,
    casting,
    control,
    elementwise,
    indexing,
    linear,
    normalization,
    ordering,
    recurrent,
    reduction,
    shape,
)
from .linear import ACTIVATIONS
from .quantized import centred_codes, octavo_operators, onnx_operators, packed
from .registry import Build, Kernel, compiled, kernel, operator, operators, supported
from .spatial import convolution, pooling, resize, transposed

__all__ = [
    "ACTIVATIONS",
    "Build",
    "Kernel",
    "activations",
    "attention",
    "casting",
    "centred_codes",
    "compiled",
    "control",
    "convolution",
    "elementwise",
    "indexing",
    "kernel",
    "linear",
    "normalization",
    "octavo_operators",
    "onnx_operators",
    "operator",
    "operators",
    "ordering",
    "packed",
    "pooling",
    "recurrent",
    "reduction",
    "resize",
    "shape",
    "supported",
    "transposed",
]
