"""Linear ops as convolutions of one pixel, where those have the faster integer kernel.

On CPUs without VNNI the products of 8-bit matrices go through a plain loop that is slower than
float32, and convolutions do not: 142, 149 and 72 ms for 512 x 384 x 1536 (OpenVINO 2026.4, AVX2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openvino.opset13 as ops

Port = Any

BACK = "/turned back"
"""Marks the names of the nodes that bring a convolution's result into the model's own layout."""

_PASSES = frozenset(
    {
        "Add",
        "Multiply",
        "Relu",
        "Gelu",
        "Swish",
        "Clamp",
        "Sigmoid",
        "Tanh",
        "FakeQuantize",
    }
)
"""Elementwise types that fuse into a convolution's tail where they stand right behind it."""


def can_convolve(product: Any) -> bool:
    """True for a MatMul of rank 2 to 4, whose result has its channels last."""
    rank = product.output(0).get_partial_shape().rank
    return bool(rank.is_static and 2 <= rank.get_length() <= 4)


def convolve(product: Any, weight: Port) -> Any:
    """Write a MatMul as a convolution, and what follows elementwise behind it in its layout.

    Args:
        product: The MatMul, whose second input is stored by output channels.
        weight: The same numbers, shape (outputs, features, 1[, 1]).

    Returns:
        The convolution.
    """
    rank = product.output(0).get_partial_shape().rank.get_length()
    data = _channels_first(product.input_value(0), rank)
    ones, none = [1] * max(1, rank - 2), [0] * max(1, rank - 2)
    made = ops.convolution(data, weight, ones, none, none, ones)
    made.set_friendly_name(product.get_friendly_name())
    last, written = product.output(0), made.output(0)
    while (following := _follower(last, rank)) is not None:
        node, index = following
        for other in range(node.get_input_size()):
            if other != index and node.get_type_name() in ("Add", "Multiply"):
                moved = _spread(node.input_value(other), rank)
                node.input(other).replace_source_output(moved)
        node.input(index).replace_source_output(written)
        node.constructor_validate_and_infer_types()
        last = written = node.output(0)
    readers = list(last.get_target_inputs())
    names = last.get_names()
    back = _channels_last(written, rank, product.get_friendly_name())
    for reader in readers:
        reader.replace_source_output(back.output(0))
    last.set_names(set())
    back.output(0).set_names(names)
    return made


def kernel_shape(outputs: int, features: int, product: Any) -> tuple[int, ...]:
    """Return the shape of the weight that :func:`convolve` takes."""
    rank = product.output(0).get_partial_shape().rank.get_length()
    return (outputs, features, *[1] * max(1, rank - 2))


def _orders(rank: int) -> tuple[list[int], list[int]]:
    """Return the order of axes that brings the channels first, and the one back."""
    first = [0, rank - 1, *range(1, rank - 1)]
    return first, [0, *range(2, rank), 1]


def _channels_first(port: Port, rank: int) -> Port:
    if rank == 2:
        # Rows are the pixels of one image.
        turned = ops.transpose(port, ops.constant(np.array([1, 0])))
        return ops.unsqueeze(turned, ops.constant(0)).output(0)
    node = port.get_node()
    first, back = _orders(rank)
    if node.get_type_name() == "Transpose":
        order = node.input_value(1).get_node()
        if order.get_type_name() == "Constant" and order.data.tolist() == back:
            return node.input_value(0)
    return ops.transpose(port, ops.constant(np.array(first))).output(0)


def _channels_last(port: Port, rank: int, name: str) -> Any:
    order = _orders(rank)[1]
    if rank == 2:
        image = ops.squeeze(port, ops.constant(0))
        image.set_friendly_name(f"{name}{BACK} as rows")
        port, order = image.output(0), [1, 0]
    turned = ops.transpose(port, ops.constant(np.array(order)))
    turned.set_friendly_name(f"{name}{BACK}")
    return turned


def _follower(port: Port, rank: int) -> tuple[Any, int] | None:
    """Return the one reader of a port, and at which input, if it may stand in another layout."""
    readers = list(port.get_target_inputs())
    if len(readers) != 1 or readers[0].get_node().get_type_name() not in _PASSES:
        return None
    node = readers[0].get_node()
    others = [
        v for i, v in enumerate(node.input_values()) if i != readers[0].get_index()
    ]
    if node.get_type_name() in ("Add", "Multiply"):
        width = port.get_partial_shape()
        fits = all(_is_by_channel(value, rank) for value in others)
        return (node, readers[0].get_index()) if fits and width.rank.is_static else None
    is_whole = all(math.prod(value.get_shape()) == 1 for value in others)
    return (node, readers[0].get_index()) if is_whole else None


def _is_by_channel(port: Port, rank: int) -> bool:
    """True for a constant of one number per channel, which lie last, or of one number."""
    if port.get_node().get_type_name() != "Constant":
        return False
    shape = tuple(port.get_shape())
    return len(shape) <= rank and math.prod(shape) == (shape[-1] if shape else 1)


def _spread(port: Port, rank: int) -> Port:
    """Return a constant by channel for values whose channels lie second."""
    numbers = np.asarray(port.get_node().data).reshape(-1)
    shape = (1, -1, *[1] * max(1, rank - 2)) if numbers.size > 1 else (1,)
    return ops.constant(numbers.reshape(shape)).output(0)
