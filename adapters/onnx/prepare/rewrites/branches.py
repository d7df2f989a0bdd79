"""If nodes whose condition is a constant: the branch that is taken becomes part of the graph around it.

ONNX Runtime does the same, under names of its own, and then nobody could tell which kernel runs an op of the branch.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import constant
from octavo.adapters.onnx.prepare.scopes import owner, walk


def take_constant_branches(graph: ir.Graph) -> bool:
    """Put the taken branch of every If with a constant condition in its place; return whether there was any."""
    found = [
        node
        for node in walk(graph)
        if node.op_type == "If" and node.domain == "" and constant(node.inputs[0]) is not None
    ]
    for node in found:
        _splice(node)
    return bool(found)


def _splice(node: ir.Node) -> None:
    condition = constant(node.inputs[0])
    assert condition is not None
    taken = "then_branch" if bool(np.reshape(condition, -1)[0]) else "else_branch"
    body, around = node.attributes[taken].as_graph(), owner(node)
    results, nodes = list(body.outputs), list(body)
    body.outputs.clear()
    body.remove(nodes)
    held = list(body.initializers.values())
    body.initializers.clear()
    around.insert_before(node, nodes)
    for value in held:
        around.register_initializer(value)
    for old, result in zip(node.outputs, results, strict=True):
        # What the branch does not write itself, or puts out twice, needs a copy: a name can be given once.
        own = result.producer() in nodes and results.count(result) == 1
        new = result if own else _copied(node, result, around)
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = f"{name}_taken", name
        new.type, new.shape = new.type or old.type, new.shape or old.shape
    around.remove(node, safe=True)


def _copied(node: ir.Node, value: ir.Value, around: ir.Graph) -> ir.Value:
    made = ir.node("Identity", [value], name=f"{node.name}_{value.name}_taken")
    made.outputs[0].name = f"{node.name}_{value.name}_copy"
    made.outputs[0].type, made.outputs[0].shape = value.type, value.shape
    around.insert_before(node, [made])
    return made.outputs[0]
