"""From a path or a native object to a checked onnx-ir model. Nothing is trusted, nothing of the source is changed.

The checks that ``onnx.checker`` and ``onnx.load`` leave out are made here: duplicate initializers, tensors with two
payloads, external files that are too short or lie outside the model's folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.passes import common as passes

from octavo.core.errors import ModelError, OctavoError, UnsafeFile

from .half import holds_halves
from .inlining import inline
from .mending import graphs, mend
from .opset import pin
from .scopes import NOTES, lift_initializers, name_all, scopes, share_imports

_TWO_GIB = 2**31 - 1
_PAYLOADS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def read(source: Any) -> ir.Model:
    """Return the model of a ``.onnx`` path, a ModelProto or an ``onnx_ir.Model``, inlined and pinned to an opset.

    What ``onnx.checker`` objects to becomes a note of the model (:func:`notes`): whether a file can be used is for ONNX
    Runtime to say.

    Raises:
        ModelError: If it is no ONNX model, or one whose tensors cannot be trusted.
        UnsafeFile: If external data points outside the model's folder.
    """
    if isinstance(source, ir.Model):
        return _settle(source.clone(), "")
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        where, folder = "the given ModelProto", None
    else:
        path = Path(source)
        proto, where, folder = _parse(path), str(path), path.parent
    _check_tensors(proto, folder)
    objection = _objection(proto if folder is None else Path(source), where)
    try:
        mend(proto)
        model = ir.from_proto(proto)
        if folder is not None:
            ir.external_data.set_base_dir(model.graph, folder)
            _map_external(model.graph)
        return _settle(model, objection)
    except OctavoError:
        raise
    except (
        Exception
    ) as error:  # a damaged message fails in a dozen ways below here, none of which is of a kind
        said = f"; onnx.checker says: {objection}" if objection else ""
        raise ModelError(
            f"{where} is not a valid ONNX model: {error}{said}; export it again, or repair it with onnx"
        ) from error


def notes(model: ir.Model) -> tuple[str, ...]:
    """Return what was noticed while a model was read."""
    return tuple(model.graph.meta.get(NOTES, ()))


def _note(model: ir.Model, said: str) -> None:
    model.graph.meta[NOTES] = (*notes(model), said)


def _map_external(graph: ir.Graph) -> None:
    """Make external tensors ordinary ones, their bytes still mapped from the file, so that no later step depends on where it was.

    torch.onnx.export writes every tensor outside by default.
    """
    for inner in scopes(graph):
        for value in inner.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(
                    tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name
                )


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"{path} is not a file; give the path of an ONNX model")
    data = path.read_bytes()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX model ({error}); was the file cut short, or is it of another format?"
        ) from error
    if not data or not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(
            f"{path} holds no ONNX graph ({len(data)} bytes); was the file cut short, or is it of another format?"
        )
    return proto


def _objection(subject: onnx.ModelProto | Path, where: str) -> str:
    """Return what ``onnx.checker`` has against a model; empty if nothing.

    Raises:
        ModelError: If the message is too large to be looked at.
    """
    if isinstance(subject, onnx.ModelProto) and subject.ByteSize() > _TWO_GIB:
        raise ModelError(f"{where} is over 2 GB; save it with external data and give its path")
    try:
        onnx.checker.check_model(subject if isinstance(subject, onnx.ModelProto) else str(subject))
    except Exception as error:  # a ValidationError, or what Python makes of a damaged message, such as UnicodeDecodeError
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""


def _check_tensors(proto: onnx.ModelProto, folder: Path | None) -> None:
    for graph in graphs(proto.graph):
        seen: set[str] = set()
        for tensor in graph.initializer:
            if tensor.name in seen:
                raise ModelError(
                    f"initializer {tensor.name!r} occurs twice in graph {graph.name!r}; remove one, as runtimes differ in which they take"
                )
            seen.add(tensor.name)
            _check_tensor(tensor, folder)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _check_tensor(attribute.t, folder)


def _check_tensor(tensor: onnx.TensorProto, folder: Path | None) -> None:
    held = [name for name in _PAYLOADS if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        held.append("raw_data")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, folder)
    if len(held) > 1:
        raise ModelError(
            f"tensor {tensor.name!r} has two payloads ({' and '.join(held)}); keep one, as runtimes differ in which they read"
        )


def _check_external(tensor: onnx.TensorProto, folder: Path | None) -> None:
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(
            f"tensor {tensor.name!r} lies in external file {location!r}, and a ModelProto does not know its folder: "
            "give the model's path, or load the data first with onnx.load_external_data_for_model"
        )
    relative = Path(location)
    if not location or relative.is_absolute() or ".." in relative.parts or "\\" in location:
        raise UnsafeFile(
            f"external data of tensor {tensor.name!r} lies at {location!r}: only relative paths inside the model's folder are read"
        )
    path = folder / relative
    steps = [folder.joinpath(*relative.parts[: i + 1]) for i in range(len(relative.parts))]
    if any(step.is_symlink() for step in steps):
        raise UnsafeFile(
            f"external data {location!r} of tensor {tensor.name!r} is a symbolic link; put the file itself into the model's folder"
        )
    if not path.is_file():
        raise ModelError(
            f"external data {location!r} of tensor {tensor.name!r} is missing in {folder}; copy it beside the model"
        )
    if os.stat(path).st_nlink > 1:
        raise UnsafeFile(
            f"external data {location!r} of tensor {tensor.name!r} is a hard link to another file; copy it beside the model"
        )
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
    except ValueError as error:
        raise ModelError(
            f"tensor {tensor.name!r} has a malformed external offset or length: {entries}; save the model again"
        ) from error
    elements = 1
    for dim in tensor.dims:
        elements *= dim
    needed = -(-elements * ir.DataType(tensor.data_type).bitwidth // 8)
    if length >= 0 and length != needed:
        raise ModelError(
            f"tensor {tensor.name!r} needs {needed} bytes and claims {length} of {location!r}; save the model again"
        )
    if offset < 0 or offset + needed > path.stat().st_size:
        raise ModelError(
            f"external file {location!r} is too short: tensor {tensor.name!r} needs bytes {offset} to {offset + needed}, it has {path.stat().st_size}"
        )


def _settle(model: ir.Model, objection: str) -> ir.Model:
    """Inline functions, name every node and value once, let the main graph hold all tensors, and pin the opset."""
    model = inline(model)
    if (model.ir_version or 0) < _LISTED_BEFORE:
        model = passes.RemoveInitializersFromInputsPass()(model).model
    model.graph.sort()
    pinned = pin(model)
    if objection:
        _note(
            pinned,
            f"onnx.checker objects to the model ({objection}); ONNX Runtime runs it, and that decides",
        )
    if holds_halves(pinned):
        _note(
            pinned,
            "the model is stored in half precision; what stays float of it is computed, and saved, in float32",
        )
    _take_as_constants(pinned)
    _own_tensors(pinned)
    name_all(pinned.graph)
    lift_initializers(pinned.graph)
    share_imports(pinned.graph)
    return pinned


_LISTED_BEFORE = 4
"""IR version: before, every initializer had to be listed as an input."""


_TOLD = 5
"""Names that a note lists."""


def _take_as_constants(model: ir.Model) -> None:
    """Unlist initializers from the inputs: whoever may replace a weight at run time would replace codes that stand for another."""
    listed = [v.name or "" for v in model.graph.inputs if v.is_initializer()]
    if listed:
        passes.RemoveInitializersFromInputsPass()(model)
        named = ", ".join(listed[:_TOLD]) + (
            f" and {len(listed) - _TOLD} more" if len(listed) > _TOLD else ""
        )
        _note(
            model,
            f"inputs with a default are taken as constants, and can no longer be given: {named}",
        )


def _own_tensors(model: ir.Model) -> None:
    """Let the model hold its tensors as arrays, so that the protobuf message they came in can go: protobuf copies at each access."""
    for graph in scopes(model.graph):
        for name, value in graph.initializers.items():
            held = value.const_value
            if (
                isinstance(held, ir.TensorProtoTensor)
                and held.dtype != ir.DataType.STRING
                and held.dtype.itemsize >= 1
            ):
                value.const_value = ir.Tensor(held.numpy(), dtype=held.dtype, name=name)
