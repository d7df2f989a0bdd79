"""What a port of a graph tells: its constant, its name, its shape and its type."""

from __future__ import annotations

from typing import Any

from octavo.plugin import InputInfo


def constant(port: Any) -> Any | None:
    """Return the float constant behind a port, decompressed or not; None where there is none."""
    node = port.get_node()
    if node.get_type_name() == "Convert" and node.get_element_type().is_real():
        node = node.input_value(0).get_node()
    is_float = node.get_type_name() == "Constant" and node.get_element_type().is_real()
    return node if is_float else None


def name_of(port: Any) -> str:
    """Return the name of a value: its tensor's, or its node's where that has none."""
    names = port.get_names()
    if names:
        return str(min(names))
    node = port.get_node().get_friendly_name()
    return node if port.get_index() == 0 else f"{node}:{port.get_index()}"


def shape_of(port: Any) -> tuple[int | None, ...] | None:
    """Return a value's shape, None for what is dynamic."""
    found = port.get_partial_shape()
    if found.rank.is_dynamic:
        return None
    return tuple(None if d.is_dynamic else d.get_length() for d in found)


def input_info(port: Any) -> InputInfo:
    """Return what a model takes at one of its inputs."""
    return InputInfo(name_of(port), shape_of(port), dtype_of(port.get_element_type()))


def dtype_of(element: Any) -> str:
    """Return NumPy's name of an element type."""
    is_bfloat16 = element.get_type_name() == "bf16"
    return "bfloat16" if is_bfloat16 else str(element.to_dtype().name)
