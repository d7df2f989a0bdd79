"""Nodes behind an operation that become part of it."""

from __future__ import annotations

import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import is_constant
from octavo.adapters.onnx.prepare.patterns import is_standard, only_use


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the only reader of a value, where it is a standard operator of the same graph."""
    use = only_use(value)
    if use is None:
        return None
    user, _ = use
    is_inside = user.graph is value.graph
    if is_inside and is_standard(user, op_type):
        return user
    return None


def fuse_activation(last: ir.Node, fused: set[ir.Node]) -> tuple[ir.Node, str]:
    """Take in a Relu or Clip that alone reads a node; return the last node and the activation."""
    for op_type in ("Relu", "Clip"):
        node = only_reader(last.outputs[0], op_type)
        if node is None:
            continue
        limits = node.inputs[1:]
        if all(value is None or is_constant(value) for value in limits):
            fused.add(node)
            return node, op_type.lower()
    return last, ""
