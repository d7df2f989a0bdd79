"""A model as OpenVINO holds it: read, folded, and with names that are the same in any process."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from openvino._offline_transformations import apply_moc_transformations

from octavo.plugin import ModelError, raised_as, unique_names

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
    # Before it is cloned: OpenVINO numbers nameless nodes through the process, and in a clone those
    # numbers are names as if somebody had given them.
    kinds = {
        node.get_friendly_name(): node.get_type_name()
        for node in source.get_ordered_ops()
        if node.get_friendly_name() != node.get_name()
    }
    model = source.clone()
    has_halves = _has_halves(model)
    apply_moc_transformations(model, cf=True)
    unguard(model)
    _store_by_outputs(model)
    if has_halves:
        _keep_halves(model)
    nodes = model.get_ordered_ops()
    # Ends of the model first, so that nothing else takes their names; constants by who reads them.
    nodes.sort(key=lambda node: _ORDER.get(node.get_type_name(), 1))
    for node in nodes:
        if node.get_type_name() != "Constant":
            node.set_friendly_name(_origin(node, kinds))
    wanted = [
        _of_constant(node, kinds)
        if node.get_type_name() == "Constant"
        else node.get_friendly_name()
        for node in nodes
    ]
    for node, name in zip(nodes, unique_names(wanted), strict=True):
        node.set_friendly_name(name)
    return model


def _store_by_outputs(model: Any) -> None:
    """Store every matrix that is multiplied with a row for each output channel."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        given, held = node.get_attributes(), node.input_value(1).get_node()
        is_constant = held.get_type_name() == "Constant"
        if (
            given["transpose_b"]
            or not is_constant
            or len(held.get_output_shape(0)) != 2
        ):
            continue
        rows = ops.constant(np.ascontiguousarray(held.data.T))
        made = ops.matmul(node.input_value(0), rows, given["transpose_a"], True)
        name, names = node.get_friendly_name(), node.output(0).get_names()
        for key, value in node.get_rt_info().items():
            made.get_rt_info()[key] = value
        node.output(0).replace(made.output(0))
        made.set_friendly_name(name)
        made.output(0).set_names(names)


def _has_halves(model: Any) -> bool:
    kinds = (n for n in model.get_ordered_ops() if n.get_type_name() == "Constant")
    return any(node.get_element_type() == ov.Type.f16 for node in kinds)


def _keep_halves(model: Any) -> None:
    """Store what came in float16, and was folded into float32, as it came: nothing is lost."""
    for node in model.get_ordered_ops():
        is_float = node.get_type_name() == "Constant"
        is_float = is_float and node.get_element_type() == ov.Type.f32
        if not is_float or len(node.get_output_shape(0)) < 2:
            continue
        halves = node.data.astype(np.float16)
        if np.array_equal(halves.astype(np.float32), node.data):
            readers = list(node.output(0).get_target_inputs())
            held = ops.constant(halves)
            held.set_friendly_name(node.get_friendly_name())
            widened = ops.convert(held, "f32")
            for reader in readers:
                reader.replace_source_output(widened.output(0))


_ORDER = {"Parameter": 0, "Result": 0, "Constant": 2}


def fused_names(node: Any) -> list[str]:
    """Return the names of the nodes that OpenVINO's passes have made one of."""
    info = node.get_rt_info()
    if "fused_names_0" not in info:
        return []
    names: str = info["fused_names_0"].astype(str)
    return names.split(",")


def _origin(node: Any, kinds: dict[str, str]) -> str:
    """Return the name of the node that one was made of; its type where it has none."""
    own: str = node.get_friendly_name()
    kind: str = node.get_type_name()
    if own in kinds or kind in ("Parameter", "Result"):
        return own.removesuffix(WITHOUT_BIAS)
    # A convolution with its batch norm is called as the convolution; a norm that was written out
    # as the first of its nodes.
    known = [name for name in fused_names(node) if name in kinds]
    known.sort(key=lambda name: kinds[name] != kind)
    return known[0].removesuffix(WITHOUT_BIAS) if known else kind


def _of_constant(node: Any, kinds: dict[str, str]) -> str:
    own: str = node.get_friendly_name()
    if own in kinds:
        return own
    readers = list(node.output(0).get_target_inputs())
    named = [f"{r.get_node().get_friendly_name()}.{r.get_index()}" for r in readers]
    return min(named, default="unread")


def digest(model: Any) -> str:
    """Return a digest of structure and weights, the same in any process; names do not count."""
    found = hashlib.sha256()
    places: dict[str, int] = {}
    for place, node in enumerate(model.get_ordered_ops()):
        places[node.get_name()] = place
        ports = node.input_values()
        sources = [(places.get(p.get_node().get_name()), p.get_index()) for p in ports]
        shapes = [str(port.get_partial_shape()) for port in node.outputs()]
        found.update(repr((node.get_type_name(), sources, shapes)).encode())
        if node.get_type_name() == "Constant":
            found.update(node.get_element_type().get_type_name().encode())
            found.update(node.data.tobytes())
        else:
            found.update(repr(sorted(node.get_attributes().items())).encode())
    return found.hexdigest()[:16]
