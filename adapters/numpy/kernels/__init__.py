"""Operators of the NumPy graph, as ONNX defines them, vectorised.

Importing this package fills the table.
"""

from . import (
    activations,
    attention,
    casting,
    control,
    elementwise,
    fused_attention,
    indexing,
    linear,
    normalization,
    ordering,
    recurrent,
    reduction,
    shape,
    softmax,
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
    "fused_attention",
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
    "softmax",
    "supported",
    "transposed",
]
