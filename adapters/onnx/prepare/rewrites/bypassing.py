"""Nodes that do nothing, or what a plainer operator does."""

from __future__ import annotations

import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import constant
from octavo.adapters.onnx.prepare.patterns import int_of


def bypass_identities(graph: ir.Graph) -> None:
    """Let whoever reads an Identity read its input.

    The outputs of the model, and of a body, need theirs.
    """
    for node in list(graph):
        if node.op_type != "Identity" or node.domain != "":
            continue
        source = node.inputs[0]
        result = node.outputs[0]
        if source is not None and not result.is_graph_output():
            result.replace_all_uses_with(source)
            graph.remove(node, safe=True)


def bypass_dropout(node: ir.Node) -> None:
    """Let whoever reads an inference-mode Dropout read its input."""
    source = node.inputs[0]
    result = node.outputs[0]
    if source is None or result.is_graph_output() or _may_train(node):
        return
    # Who reads the mask needs the node.
    if not any(output.uses() for output in node.outputs[1:]):
        result.replace_all_uses_with(source)


def bypass_cast(node: ir.Node) -> None:
    """Let whoever reads a Cast to the type that its input has read the input.

    ONNX Runtime 1.32 loses the second of two such casts in a norm, and refuses the model.
    """
    source = node.inputs[0]
    result = node.outputs[0]
    if source is None or source.dtype is None or result.is_graph_output():
        return
    if int_of(node, "to", 0) == source.dtype:
        result.replace_all_uses_with(source)


def _may_train(dropout: ir.Node) -> bool:
    """True if a Dropout's ``training_mode`` is true, or not known before the model is run."""
    if len(dropout.inputs) < 3 or dropout.inputs[2] is None:
        return False
    training = constant(dropout.inputs[2])
    return training is None or bool(training)


def add_from_sum(node: ir.Node) -> None:
    """Turn a Sum of two, as older exporters write residual sums, into Add.

    Add has an integer kernel.
    """
    if len(node.inputs) == 2:
        node.op_type = "Add"
