"""What a node's ports tell: names, types, constants, readers."""

from __future__ import annotations

import math
from typing import Any

from octavo.plugin import InputInfo, Weight

from .prepare import constant


def name_of(port: Any) -> str:
    """Return the name of a value: its tensor's, or its node's where that has none."""
    names = port.get_names()
    if names:
        return str(min(names))
    node = port.get_node().get_friendly_name()
    return node if port.get_index() == 0 else f"{node}:{port.get_index()}"


def input_info(port: Any) -> InputInfo:
    """Return what a model takes at one of its inputs."""
    shape = None
    found = port.get_partial_shape()
    if found.rank.is_static:
        shape = tuple(None if d.is_dynamic else d.get_length() for d in found)
    return InputInfo(name_of(port), shape, dtype_of(port.get_element_type()))


def dtype_of(element: Any) -> str:
    """Return NumPy's name of an element type."""
    if element.get_type_name() == "bf16":
        return "bfloat16"
    return str(element.to_dtype().name)


def constant_number(port: Any) -> int | None:
    """Return the number of a constant of one element; None for any other port."""
    node = port.get_node()
    if node.get_type_name() != "Constant" or math.prod(node.get_output_shape(0)) != 1:
        return None
    return int(node.data.reshape(-1)[0])


def is_activation(port: Any) -> bool:
    """Return whether a value is a float that is no constant."""
    return port.get_element_type().is_real() and constant(port) is None


def is_spatial(mean: Any) -> bool:
    """True for a mean over all axes but the first two: what is pooled globally."""
    rank = mean.input_value(0).get_partial_shape().rank
    axes = mean.input_value(1).get_node()
    if rank.is_dynamic or axes.get_type_name() != "Constant":
        return False
    length = rank.get_length()
    found = sorted(int(a) % length for a in axes.data.reshape(-1))
    return length > 2 and found == list(range(2, length))


def is_decompressed(port: Any) -> bool:
    """Return whether a value is made of codes."""
    return port.get_node().get_type_name() in ("Multiply", "Convert", "FakeQuantize")


def why_not_constant(port: Any) -> str:
    """Return why an op has no weight to quantize."""
    if is_decompressed(port):
        return "it is quantized already, or its weight is computed at run time"
    return "its weight is computed at run time"


def why_double(node: Any) -> str:
    """Return why an op in double precision stays as it is; '' for others."""
    if node.get_output_element_type(0).get_type_name() == "f64":
        return "it computes in double precision, which no quantized kernel takes"
    return ""


def only_reader(port: Any) -> Any | None:
    """Return the node that alone reads a port; None where there are others."""
    readers = list(port.get_target_inputs())
    if len(readers) != 1:
        return None
    return readers[0].get_node()


def macs(node: Any, kind: str, weights: tuple[Weight, ...]) -> int | None:
    """Multiply-accumulates for one sample (the first axis left out); None where unknown."""
    if not weights or kind not in ("linear", "conv", "conv_transpose"):
        return None
    first = weights[0]
    counted = node.input_value(0) if kind == "conv_transpose" else node.output(0)
    shape = counted.get_partial_shape()
    if shape.rank.is_dynamic or any(d.is_dynamic for d in list(shape)[1:]):
        return None
    sizes: list[int] = [d.get_length() for d in list(shape)[1:]]
    if kind == "conv_transpose":
        return math.prod(sizes[1:]) * first.size
    return math.prod(sizes) * (first.size // first.shape[first.channel_axis])
