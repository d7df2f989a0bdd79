"""Masked softmax without a test for NaN on every score.

PyTorch's exporter guards rows whose every score is masked with -inf: Select(IsNaN(p), 0, p), which
keeps OpenVINO from making one kernel of an attention. The same function, one row at a time: scores
are masked with the lowest finite number, and rows that are masked throughout are multiplied by 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino.opset13 as ops

_LOWEST = np.float32(np.finfo(np.float32).min)


def unguard(model: Any) -> None:
    """Rewrite every guarded softmax of a model."""
    masks: dict[tuple[str, int], tuple[Any, Any]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Select":
            _unguard(node, masks)
    model.validate_nodes_and_infer_types()


def _unguard(select: Any, masks: dict[tuple[str, int], tuple[Any, Any]]) -> None:
    test, zero, softmax = (port.get_node() for port in select.input_values())
    is_guard = test.get_type_name() == "IsNaN" and softmax.get_type_name() == "Softmax"
    if not is_guard or test.input_value(0).get_node() != softmax:
        return
    if zero.get_type_name() != "Constant" or np.any(zero.data != 0):
        return
    masked = softmax.input_value(0).get_node()
    readers = list(select.output(0).get_target_inputs())
    is_alone = len(readers) == 1 and len(softmax.output(0).get_target_inputs()) == 2
    if masked.get_type_name() != "Add" or not is_alone:
        return
    product = readers[0].get_node()
    if product.get_type_name() != "MatMul" or readers[0].get_index() != 0:
        return
    # Scores are products; the mask is what is made of none.
    index = 0 if _is_of_products(masked.input_value(1).get_node()) else 1
    mask = masked.input_value(index)
    place = (mask.get_node().get_name(), mask.get_index())
    if place not in masks:
        finite = ops.maximum(mask, ops.constant(_LOWEST))
        highest = ops.reduce_max(mask, ops.constant(np.array([-1])), True)
        kept = ops.convert(ops.greater(highest, ops.constant(_LOWEST)), "f32")
        masks[place] = (finite, kept)
    finite, kept = masks[place]
    masked.input(index).replace_source_output(finite.output(0))
    readers[0].replace_source_output(softmax.output(0))
    readers = list(product.output(0).get_target_inputs())
    cleared = ops.multiply(product, kept)
    for reader in readers:
        reader.replace_source_output(cleared.output(0))


def _is_of_products(node: Any) -> bool:
    """True for a product, or one that is multiplied by a number."""
    while node.get_type_name() in ("Multiply", "Divide"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "MatMul")
