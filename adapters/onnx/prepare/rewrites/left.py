"""Products that go back to what they were: with their constant on the left, without swaps."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import Graph, Node, Value

from octavo.adapters.onnx.prepare.constants import register
from octavo.adapters.onnx.prepare.patterns import producer_at
from octavo.adapters.onnx.prepare.scopes import owner

LEFT = "octavo.left"
"""Marks a product whose constant stood on the left, and holds that constant.

The swaps around it go again where it stays float.
"""


def restore_left(product: Node, tensor: ir.TensorProtocol, main: Graph) -> None:
    """Write a product with its constant on the left again, without the swaps around it.

    Args:
        product: Marked with :data:`LEFT`.
        tensor: The constant as it was.
        main: Holds all constants.
    """
    inner = producer_at(product, 0)
    last = _swap_behind(product)
    if inner is None or inner.op_type != "Transpose" or last is None:
        return
    turned = product.inputs[1]
    held = _held(main, tensor, turned)
    made = ir.node("MatMul", [held, inner.inputs[0]], name=product.name)
    owner(last).insert_before(last, [made])
    _take_back(made.outputs[0], last.outputs[0])
    owner(last).remove(last, safe=True)
    owner(product).remove(product, safe=True)
    if not inner.outputs[0].uses():
        owner(inner).remove(inner, safe=True)
    if turned is not None and turned.name is not None and not turned.uses():
        # The weight is called what the model calls it, in whatever layout it is held.
        name = turned.name
        del main.initializers[name]
        held.name = name


def _swap_behind(product: Node) -> Node | None:
    uses = tuple(product.outputs[0].uses())
    if len(uses) != 1:
        return None
    user, _ = uses[0]
    if user.op_type == "Transpose":
        return user
    return None


def _take_back(result: Value, old: Value) -> None:
    name = old.name
    result.type = old.type
    result.shape = old.shape
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    old.name = f"{name}_swapped_back"
    result.name = name


def _held(main: Graph, tensor: ir.TensorProtocol, turned: Value | None) -> Value:
    """Return the initializer that holds a tensor; one of its own where there is none."""
    for value in main.initializers.values():
        if value.const_value is tensor:
            return value
    name = turned.name if turned is not None else "left"
    return register(main, f"{name}_left", tensor)
