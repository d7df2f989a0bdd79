"""Carriers: nodes that move or select values and compute nothing, so that codes pass them."""

from __future__ import annotations

import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import is_constant

from .site import is_non_float

CARRIERS = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Resize"}
)
"""Ops that ONNX Runtime runs on codes as they are.

Resize where it repeats the nearest value and interpolates nothing.
"""


def root(value: ir.Value) -> ir.Value:
    """Return the value that carriers brought here."""
    while True:
        node = value.producer()
        if node is None or not carries(node):
            return value
        first = node.inputs[0]
        assert first is not None
        value = first


def carries(node: ir.Node) -> bool:
    """True if a node moves values of its first input and computes nothing."""
    if node.domain != "" or node.op_type not in CARRIERS or not node.inputs:
        return False
    moved = node.inputs[0]
    if moved is None or is_constant(moved) or is_non_float(moved):
        return False
    for output in node.outputs[1:]:
        if output.uses() or output.is_graph_output():
            return False
    return node.op_type != "Resize" or _repeats(node)


def _repeats(resize: ir.Node) -> bool:
    """True if every value of a Resize is one of its input's."""
    attributes = resize.attributes
    if "mode" in attributes and attributes["mode"].as_string() != "nearest":
        return False
    if "coordinate_transformation_mode" not in attributes:
        return True
    # Cropping fills in values of its own (extrapolation_value).
    return (
        attributes["coordinate_transformation_mode"].as_string() != "tf_crop_and_resize"
    )
