"""Operators of the NumPy graph, as ONNX defines them, vectorised. Importing this package fills the table."""

from . import (
    attention,
    casting,
    control,
    convolution,
    elementwise,
    linear,
    normalization,
    ordering,
    pooling,
    recurrent,
    reduction,
    resize,
    shape,
    transposed,
)
from .linear import ACTIVATIONS
from .quantized import octavo_operators, onnx_operators, packed
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
