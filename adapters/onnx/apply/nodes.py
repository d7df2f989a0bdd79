"""Nodes that quantized operations are made of, and what was written for each operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir import DataType, Node, Value

MS = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """What was written for one op.

    Attributes:
        node: Name of the main node.
        half: The half-precision type it is written in; empty for integers.
    """

    node: str
    half: str = ""


def declare(
    value: Value, name: str, dtype: DataType, shape: ir.Shape | None = None
) -> Value:
    """Name a new value and say of which type and shape it is; return it."""
    value.name = name
    value.type = ir.TensorType(dtype)
    value.shape = shape
    return value


def declare_like(value: Value, other: Value) -> None:
    """Give a value the type and shape of another one."""
    value.type = other.type
    value.shape = other.shape


def swap_names(value: Value, old: Value, tag: str) -> None:
    """Let a value bear the name of another one, which is given a tag."""
    name = old.name
    # The old one gives the name up first: a graph holds each name once.
    old.name = f"{name}_{tag}"
    value.name = name


def dequantize_linear(
    inputs: Sequence[Value | None],
    *,
    name: str,
    result: str,
    axis: int | None = None,
    domain: str = "",
) -> Node:
    """Make a DequantizeLinear of codes, scale and zero point; its result is float32."""
    attributes = {"axis": axis} if axis is not None else None
    given = without_trailing_gaps(inputs)
    node = ir.node("DequantizeLinear", given, attributes, domain=domain, name=name)
    declare(node.outputs[0], result, DataType.FLOAT)
    return node


def without_trailing_gaps(inputs: Sequence[Value | None]) -> list[Value | None]:
    """Return inputs without those left out at the end."""
    trimmed = list(inputs)
    while trimmed and trimmed[-1] is None:
        trimmed.pop()
    return trimmed
