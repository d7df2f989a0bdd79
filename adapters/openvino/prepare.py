"""A model as OpenVINO holds it: read, folded, and with names that are the same in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import openvino as ov
from openvino._offline_transformations import apply_moc_transformations

from octavo.plugin import ModelError, raised_as

from .attention import unguard

WITHOUT_BIAS = "/WithoutBiases"
"""What OpenVINO's ONNX reader adds to the name of a product whose bias it makes an Add of."""


@lru_cache
def core() -> Any:
    """Return the process' OpenVINO."""
    made = ov.Core()
    # A mapped file that is written anew, or cut, would end the process.
    made.set_property({"ENABLE_MMAP": False})
    return made


def read(source: Any) -> Any:
    """Return the ``ov.Model`` of a path (.onnx, .xml), or the one that is given.

    Raises:
        ModelError: If OpenVINO cannot read it.
    """
    if isinstance(source, ov.Model):
        return source
    path = Path(source)
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}")
    with raised_as(ModelError, f"OpenVINO cannot read {path}", "export it again"):
        return core().read_model(path)


def prepared(source: Any) -> Any:
    """Return a model folded for quantization, with unique and repeatable names.

    OpenVINO's own offline passes fold batch norm, GELU and layer norm, and constants into
    constants. An op keeps the name of the node that it was made of, so that rules for an ONNX model
    address it here as they do there.

    Args:
        source: Stays as it is; constants are shared with it.
    """
    # Before it is cloned: a clone has the numbers as names that somebody gave.
    known = {node.get_friendly_name(): i for i, node in enumerate(_named(source))}
    kinds = {node.get_friendly_name(): node.get_type_name() for node in _named(source)}
    model = source.clone()
    apply_moc_transformations(model, cf=True)
    unguard(model)
    taken: set[str] = set()
    nodes = model.get_ordered_ops()
    for node in nodes:
        if node.get_type_name() in ("Parameter", "Result"):
            taken.add(node.get_friendly_name())
    unnamed: dict[str, int] = {}
    for node in nodes:
        kind = node.get_type_name()
        if kind in ("Parameter", "Result", "Constant"):
            continue
        name = _origin(node, known, kinds)
        if not name:
            unnamed[kind] = unnamed.get(kind, -1) + 1
            name = f"{kind}_{unnamed[kind]}"
        _rename(node, name, taken)
    for node in nodes:
        if node.get_type_name() == "Constant":
            name = node.get_friendly_name()
            _rename(node, name if name in known else _by_reader(node), taken)
    return model


def _named(model: Any) -> Iterator[Any]:
    """Yield the nodes that somebody named; OpenVINO numbers the others through the process."""
    for node in model.get_ordered_ops():
        if node.get_friendly_name() != node.get_name():
            yield node


def _origin(node: Any, known: dict[str, int], kinds: dict[str, str]) -> str:
    """Return the name of the node that one was made of; '' where it has none."""
    own: str = node.get_friendly_name()
    if own in known:
        return own.removesuffix(WITHOUT_BIAS)
    info = node.get_rt_info()
    if "fused_names_0" not in info:
        return ""
    fused: list[str] = info["fused_names_0"].astype(str).split(",")
    names = [name for name in fused if name in known]
    kind = node.get_type_name()
    # A convolution with its batch norm is called as the convolution; a norm that was written out
    # as the first of its nodes.
    names.sort(key=lambda name: (kinds[name] != kind, known[name]))
    return names[0].removesuffix(WITHOUT_BIAS) if names else ""


def _by_reader(constant: Any) -> str:
    """Return a constant's name by who reads it."""
    readers = list(constant.output(0).get_target_inputs())
    named = [f"{r.get_node().get_friendly_name()}.{r.get_index()}" for r in readers]
    return min(named, default="unread")


def _rename(node: Any, wanted: str, taken: set[str]) -> None:
    name = wanted
    number = 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    node.set_friendly_name(name)


def constant(port: Any) -> Any | None:
    """Return the constant behind a port, decompressed or not; None where there is none."""
    node = port.get_node()
    if node.get_type_name() == "Convert" and node.get_element_type().is_real():
        node = node.input_value(0).get_node()
    is_float = node.get_type_name() == "Constant" and node.get_element_type().is_real()
    return node if is_float else None


def digest(model: Any) -> str:
    """Return a digest of structure and weights, the same in any process; names do not count."""
    found = hashlib.sha256()
    places: dict[str, int] = {}
    for place, node in enumerate(model.get_ordered_ops()):
        places[node.get_name()] = place
        sources = [
            (places.get(port.get_node().get_name(), -1), port.get_index())
            for port in node.input_values()
        ]
        shapes = [str(port.get_partial_shape()) for port in node.outputs()]
        found.update(repr((node.get_type_name(), sources, shapes)).encode())
        if node.get_type_name() == "Constant":
            found.update(node.get_element_type().get_type_name().encode())
            found.update(node.data.tobytes())
        else:
            # Whole numbers, texts and lists of them, in the order of their names.
            found.update(repr(sorted(node.get_attributes().items())).encode())
    return found.hexdigest()[:16]
