"""Operators of the NumPy graph, as ONNX defines them, vectorised. Importing this package fills the table."""

from . import convolution, elementwise, integer, linear, normalization, pooling, quantized, reduction, shape
from .linear import ACTIVATIONS
from .registry import Build, Kernel, compiled, kernel, operator, operators, supported

__all__ = [
    "ACTIVATIONS",
    "Build",
    "Kernel",
    "compiled",
    "convolution",
    "elementwise",
    "integer",
    "kernel",
    "linear",
    "normalization",
    "operator",
    "operators",
    "pooling",
    "quantized",
    "reduction",
    "shape",
    "supported",
]
