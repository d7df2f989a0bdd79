"""Nodes behind an operation that become part of it."""

from __future__ import annotations

import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import is_constant


def only_use(value: ir.Value, op_type: str) -> ir.Node | None:
    """Return the only reader of a value, where it is a standard operator of the same graph."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    user, _ = uses[0]
    is_wanted = user.op_type == op_type and user.domain == ""
    return user if is_wanted and user.graph is value.graph else None


def fuse_activation(last: ir.Node, fused: set[ir.Node]) -> tuple[ir.Node, str]:
    """Take in a Relu or Clip that alone reads a node; return the last node and the activation."""
    for op_type in ("Relu", "Clip"):
        node = only_use(last.outputs[0], op_type)
        if node is not None and all(v is None or is_constant(v) for v in node.inputs[1:]):
            fused.add(node)
            return node, op_type.lower()
    return last, ""
