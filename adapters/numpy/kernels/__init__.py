"""Operators of the NumPy graph, as ONNX defines them, vectorised. Importing this package fills the table."""

from . import (
    attention,
    casting,
    control,
    elementwise,
    linear,
    normalization,
    ordering,
    recurrent,
    reduction,
    shape,
)
from .linear import ACTIVATIONS
from .quantized import octavo_operators, onnx_operators, packed
from .registry import Build, Kernel, compiled, kernel, operator, operators, supported
from .spatial import convolution, pooling, resize, transposed

__all__ = [
    "ACTIVATIONS",
    "Build",
    "Kernel",
    "attention",
    "casting",
    "compiled",
    "control",
    "convolution",
    "elementwise",
    "kernel",
    "linear",
    "normalization",
    "octavo_operators",
    "operator",
    "operators",
    "ordering",
    "packed",
    "pooling",
    "onnx_operators",
    "recurrent",
    "reduction",
    "resize",
    "shape",
    "supported",
    "transposed",
]
