"""From a path or a native object to a checked onnx-ir model.

Nothing is trusted, nothing of the source is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir import DataType, Graph, Model
from onnx_ir.passes import common as passes

from octavo.core.errors import ModelError, OctavoError

from .half import holds_halves
from .inlining import inline
from .mending import mend
from .opset import pin
from .scopes import NOTES, lift_initializers, name_all, scopes, share_imports
from .tensor_checks import check_tensors

_TWO_GIB = 2**31 - 1

_LISTED_BEFORE = 4
"""IR version: before, every initializer had to be listed as an input."""

_TOLD = 5
"""Names that a note lists."""


@dataclass(frozen=True)
class _Given:
    """A message as it was given.

    Attributes:
        proto: Owned by the reader.
        path: The file that it was read from; None for a ModelProto.
    """

    proto: onnx.ModelProto
    path: Path | None

    @property
    def where(self) -> str:
        if self.path is None:
            return "the given ModelProto"
        return str(self.path)

    @property
    def folder(self) -> Path | None:
        if self.path is None:
            return None
        return self.path.parent


def read(source: Any) -> Model:
    """Return the model of a ``.onnx`` path, a ModelProto or an ``onnx_ir.Model``.

    It is inlined and pinned to an opset. What ``onnx.checker`` objects to becomes a note of the
    model: whether a file can be used is for ONNX Runtime to say.

    Raises:
        ModelError: If it is no ONNX model, or one whose tensors cannot be trusted.
        UnsafeFile: If external data points outside the model's folder.
    """
    if isinstance(source, Model):
        return _settle(source.clone(), "")
    given = _given(source)
    check_tensors(given.proto, given.folder)
    objection = _objection(given)
    try:
        mend(given.proto)
        model = ir.from_proto(given.proto)
        if given.folder is not None:
            ir.external_data.set_base_dir(model.graph, given.folder)
            _map_external(model.graph)
        return _settle(model, objection)
    except OctavoError:
        raise
    except Exception as error:
        # A damaged message fails in a dozen ways below here, none of which is of a kind.
        said = f"; onnx.checker says: {objection}" if objection else ""
        raise ModelError(
            f"{given.where} is not a valid ONNX model: {error}{said}; "
            "export it again, or repair it with onnx"
        ) from error


def _given(source: Any) -> _Given:
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        return _Given(proto, None)
    path = Path(source)
    return _Given(_parse(path), path)


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"{path} is not a file; give the path of an ONNX model")
    data = path.read_bytes()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX model ({error}); "
            "was the file cut short, or is it of another format?"
        ) from error
    if not data or not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(
            f"{path} holds no ONNX graph ({len(data)} bytes); "
            "was the file cut short, or is it of another format?"
        )
    return proto


def _objection(given: _Given) -> str:
    """Return what ``onnx.checker`` has against a model; empty if nothing.

    Raises:
        ModelError: If the message is too large to be looked at.
    """
    if given.path is None and given.proto.ByteSize() > _TWO_GIB:
        raise ModelError(
            f"{given.where} is over 2 GB; save it with external data and give its path"
        )
    try:
        # By its path the checker also looks at external data.
        subject = given.proto if given.path is None else str(given.path)
        onnx.checker.check_model(subject)
    except Exception as error:
        # A ValidationError, or what Python makes of a damaged message (UnicodeDecodeError).
        said = " ".join(str(error).split())
        return said[:300] or type(error).__name__
    return ""


def notes(model: Model) -> tuple[str, ...]:
    """Return what was noticed while a model was read."""
    return tuple(model.graph.meta.get(NOTES, ()))


def _note(model: Model, said: str) -> None:
    model.graph.meta[NOTES] = (*notes(model), said)


def _map_external(graph: Graph) -> None:
    """Make external tensors ordinary ones, their bytes still mapped from the file.

    So no later step depends on where the file was. torch.onnx.export writes every tensor outside by
    default.
    """
    for scope in scopes(graph):
        for value in scope.initializers.values():
            held = value.const_value
            if isinstance(held, ir.ExternalTensor):
                array = held.numpy()
                value.const_value = ir.Tensor(
                    array, dtype=held.dtype, shape=held.shape, name=held.name
                )


def _settle(model: Model, objection: str) -> Model:
    """Bring a model into the form that all the rest expects.

    Functions are inlined, every node and value is named once, the main graph holds all tensors, and
    the opset is pinned.
    """
    model = inline(model)
    if (model.ir_version or 0) < _LISTED_BEFORE:
        model = passes.RemoveInitializersFromInputsPass()(model).model
    # From here on nodes are walked in execution order.
    model.graph.sort()
    pinned = pin(model)
    if objection:
        decides = "ONNX Runtime runs it, and that decides"
        _note(pinned, f"onnx.checker objects to the model ({objection}); {decides}")
    if holds_halves(pinned):
        _note(
            pinned,
            "the model is stored in half precision; "
            "what stays float of it is computed, and saved, in float32",
        )
    _take_as_constants(pinned)
    _own_tensors(pinned)
    name_all(pinned.graph)
    lift_initializers(pinned.graph)
    share_imports(pinned.graph)
    return pinned


def _take_as_constants(model: Model) -> None:
    """Unlist initializers from the inputs.

    Whoever may replace a weight at run time would replace codes that stand for another.
    """
    listed = [v.name or "" for v in model.graph.inputs if v.is_initializer()]
    if not listed:
        return
    passes.RemoveInitializersFromInputsPass()(model)
    names = ", ".join(listed[:_TOLD])
    if len(listed) > _TOLD:
        names += f" and {len(listed) - _TOLD} more"
    taken = "inputs with a default are taken as constants, and can no longer be given"
    _note(model, f"{taken}: {names}")


def _own_tensors(model: Model) -> None:
    """Let the model hold its tensors as arrays, so that the message they came in can go.

    Protobuf copies at each access.
    """
    for graph in scopes(model.graph):
        for name, value in graph.initializers.items():
            held = value.const_value
            if not isinstance(held, ir.TensorProtoTensor):
                continue
            is_text = held.dtype == DataType.STRING
            if not is_text and held.dtype.itemsize >= 1:
                value.const_value = ir.Tensor(held.numpy(), dtype=held.dtype, name=name)
