"""Operators of the NumPy graph, as ONNX defines them, vectorised. Importing this package fills the table."""

from . import (
    attention,
    casting,
    control,
    convolution,
    elementwise,
    linear,
    normalization,
    onnx_quantized,
    ordering,
    pooling,
    quantized,
    recurrent,
    reduction,
    resize,
    shape,
    transposed,
)
from .linear import ACTIVATIONS
from .registry import Build, Kernel, compiled, kernel, operator, operators, supported

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
    "onnx_quantized",
    "operator",
    "operators",
    "ordering",
    "pooling",
    "quantized",
    "recurrent",
    "reduction",
    "resize",
    "shape",
    "supported",
    "transposed",
]
