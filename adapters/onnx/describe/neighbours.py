"""Elementwise ops among float ops stay float: one alone in integers costs more than it saves."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import is_constant
from octavo.adapters.onnx.prepare.patterns import FLOATS

from .site import Site, is_non_float

_INTEGER_SOURCES = ("conv", "conv_transpose", "avg_pool")
_COMPANIONS = frozenset({"add", "mul", "concat", "softmax", "sigmoid", "leaky_relu"})
"""Elementwise ops, worth integers only where integers come to them."""

_MINUS_INFINITY = -1e4
"""Constants of this size and below stand for minus infinity in masks; float16 ends at -65,504."""

_MASK_DEPTH = 8
"""Nodes between a mask's constant and the op that are looked through."""

_MASKING = frozenset(
    {
        "Where", "Mul", "Expand", "Unsqueeze", "Reshape", "Slice", "Cast", "Sub", "Add", "Concat",
        "Transpose", "Trilu", "Max", "Squeeze", "ConstantOfShape", "ScatterND", "Softmax",
    }
)  # fmt: skip
"""Operators that masks are made with."""


def keep_float_among_floats(site: Site, integers: set[str]) -> Site:
    """Keep an elementwise op among float ops in float; return the site, with why where it is kept.

    Measured on ONNX Runtime 1.32: nothing is gained where no convolution feeds it, and
    transformers lose accuracy.

    Args:
        site: The next one in execution order.
        integers: Names of the values that may be integers; this op's results are added.
    """
    op = site.op
    if op.type in _INTEGER_SOURCES:
        integers.update(op.outputs)
        return site
    if op.type not in _COMPANIONS or op.out_of_reach:
        return site
    if any(_adds_mask(v) for v in site.node.inputs):
        return _kept(site, "it works on masked scores, whose range no integer holds")
    if not integers.intersection(site.roots):
        return _kept(site, "its neighbours compute in float")
    integers.update(op.outputs)
    return site


def _kept(site: Site, why: str) -> Site:
    return replace(site, op=replace(site.op, out_of_reach=why))


def _adds_mask(value: ir.Value | None, depth: int = _MASK_DEPTH) -> bool:
    """True if a value is a mask, or comes from an addition of one."""
    if value is None or depth == 0 or is_non_float(value):
        return False
    if is_constant(value):
        return _is_minus_infinity(value)
    node = value.producer()
    if (
        node is None
        or node.domain not in ("", "ai.onnx")
        or node.op_type not in _MASKING
    ):
        return False
    return any(_adds_mask(v, depth - 1) for v in node.inputs)


def _is_minus_infinity(value: ir.Value) -> bool:
    held = value.const_value
    if held is None or held.size != 1 or held.dtype not in FLOATS:
        return False
    return float(held.numpy().reshape(-1)[0]) <= _MINUS_INFINITY
