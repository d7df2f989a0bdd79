"""If nodes whose condition is a constant: the branch that is taken joins the graph around it.

ONNX Runtime does the same, under names of its own, and then nobody could tell which kernel runs an
op of the branch.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import Graph, Node, Value

from octavo.adapters.onnx.prepare.constants import is_constant, scalar
from octavo.adapters.onnx.prepare.patterns import is_standard
from octavo.adapters.onnx.prepare.scopes import owner, walk


def take_constant_branches(graph: Graph) -> bool:
    """Put the taken branch of every If with a constant condition in its place.

    Returns:
        Whether there was any.
    """
    ifs = [node for node in walk(graph) if is_standard(node, "If")]
    found = [node for node in ifs if is_constant(node.inputs[0])]
    for node in found:
        _splice(node)
    return bool(found)


def _splice(node: Node) -> None:
    taken = "then_branch" if scalar(node.inputs[0]) else "else_branch"
    body = node.attributes[taken].as_graph()
    around = owner(node)
    results = list(body.outputs)
    nodes = set(body)
    _move(body, node)
    for old, result in zip(node.outputs, results, strict=True):
        # What the branch does not write itself, or puts out twice, needs a copy: a name can be
        # given once.
        is_own = result.producer() in nodes and results.count(result) == 1
        if is_own:
            new = result
        else:
            new = _copied(node, result)
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{name}_taken"
        new.name = name
        new.type = new.type or old.type
        new.shape = new.shape or old.shape
    around.remove(node, safe=True)


def _move(body: Graph, node: Node) -> None:
    """Move the nodes and tensors of a body to where the node that holds it stands."""
    around = owner(node)
    nodes = list(body)
    tensors = list(body.initializers.values())
    body.outputs.clear()
    body.remove(nodes)
    body.initializers.clear()
    around.insert_before(node, nodes)
    for value in tensors:
        around.register_initializer(value)


def _copied(node: Node, value: Value) -> Value:
    made = ir.node("Identity", [value], name=f"{node.name}_{value.name}_taken")
    copy = made.outputs[0]
    copy.name = f"{node.name}_{value.name}_copy"
    copy.type = value.type
    copy.shape = value.shape
    owner(node).insert_before(node, [made])
    return copy
