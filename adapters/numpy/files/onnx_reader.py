"""From ONNX to the graph.

The only module of this backend that needs onnx to read models, and imports it when it is called.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.adapters.numpy.kernels import supported
from octavo.core.errors import MissingFramework, ModelError, UnsafeFile
from octavo.core.values.graph import InputInfo

if TYPE_CHECKING:
    import onnx

_DEFAULT_DOMAINS = ("", "ai.onnx")

_TYPES = ("to", "dtype", "output_dtype", "precision", "softmax_precision")
"""Attributes that name a type: ONNX numbers its types, a graph names them."""


def from_onnx(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Graph:
    """Read a model from a path, bytes or a ModelProto.

    Raises:
        MissingFramework: If onnx is not installed.
        ModelError: If it is no valid model, or uses what the graph has no form for.
        UnsafeFile: If external data lies outside the model's folder.
    """
    try:
        import onnx
        from onnx import inliner
    except ImportError as error:
        raise MissingFramework(
            f"reading an ONNX model needs onnx: {error}. pip install 'octavo[onnx]'"
        ) from error
    model = source if isinstance(source, onnx.ModelProto) else _parsed(source)
    if not model.graph.node and not model.graph.output:
        raise ModelError("the ONNX model is empty: it has no nodes and no outputs")
    if model.functions:
        model = inliner.inline_local_functions(model)
    opset = _opset_of(model)
    _check(model)
    return _Reader(opset).graph(model.graph).check()


def _parsed(source: str | os.PathLike[str] | bytes) -> onnx.ModelProto:
    import onnx

    try:
        if isinstance(source, bytes):
            return onnx.load_from_string(source)
        return _load(Path(source))
    except UnsafeFile:
        raise
    except Exception as error:  # protobuf, onnx and the file system raise many kinds
        said = "the bytes" if isinstance(source, bytes) else source
        raise ModelError(
            f"{said!r} cannot be read as an ONNX model: {error}"
        ) from error


def _opset_of(model: onnx.ModelProto) -> int:
    for imported in model.opset_import:
        if imported.domain in _DEFAULT_DOMAINS and imported.version:
            return int(imported.version)
    raise ModelError(
        "the ONNX model does not say which operator set it uses; add an opset_import of the "
        "default domain"
    )


def _check(model: onnx.ModelProto) -> None:
    from onnx import checker

    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        raise ModelError(f"the ONNX model is not valid: {error}") from error


def _load(path: Path) -> onnx.ModelProto:
    """Read a file, and the tensors that it keeps in other files."""
    import onnx
    from onnx import external_data_helper

    model = onnx.load(str(path), load_external_data=False)
    folder = path.resolve().parent
    for tensor in external_data_helper._get_all_tensors(model):
        if external_data_helper.uses_external_data(tensor):
            info = external_data_helper.ExternalDataInfo(tensor)
            _check_external(f"tensor {tensor.name!r} of {path}", folder, info)
    external_data_helper.load_external_data_for_model(model, str(folder))
    return model


def _check_external(tensor: str, folder: Path, info: Any) -> None:
    """Refuse a tensor whose data a stranger's model takes from elsewhere, or that is cut short."""
    location = Path(info.location)
    target = folder / location
    keeps = f"{tensor} keeps its data in {info.location!r}"
    climbs = location.is_absolute() or ".." in location.parts
    if climbs or target.is_symlink() or not target.resolve().is_relative_to(folder):
        raise UnsafeFile(f"{keeps}, outside the model's folder; refused")
    if not target.is_file():
        raise ModelError(f"{keeps}, which is missing")
    status = target.stat()
    # A hard link may be another user's file, under a name inside the folder.
    if status.st_nlink > 1:
        raise UnsafeFile(f"{keeps}, which is a hard link; refused")
    end = (info.offset or 0) + (info.length or 0)
    if end > status.st_size:
        raise ModelError(
            f"{tensor} needs {info.length} bytes of {info.location!r}, which is too short"
        )


class _Reader:
    """Reads the graphs of one model; nodes without a name are numbered through all of them."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._count = 0

    def graph(self, proto: Any) -> Graph:
        """Return a graph, or the body of a node."""
        initializers = _initializers(proto)
        uses: dict[str, int] = {}
        nodes = tuple(self._node(node, uses) for node in proto.node)
        # Before IR version 4 initializers are inputs too.
        inputs = tuple(
            _info(value) for value in proto.input if value.name not in initializers
        )
        outputs = tuple(value.name for value in proto.output)
        return Graph(nodes, initializers, inputs, outputs, self._opset)

    def _node(self, node: Any, uses: dict[str, int]) -> Node:
        """Return a node; ``uses`` counts names, of which ONNX allows two of a kind."""
        op = node.op_type
        if node.domain not in _DEFAULT_DOMAINS:
            op = f"{node.domain}.{node.op_type}"
            if not supported(op, self._opset):
                raise ModelError(
                    f"node {node.name or node.op_type!r} is a {op}, which the NumPy backend does "
                    "not have; export it with the default domain"
                )
        name = node.name or f"{node.op_type}_{self._count}"
        self._count += 1
        earlier = uses.get(name, 0)
        uses[name] = earlier + 1
        if earlier:
            name = f"{name}_{earlier}"
        attributes = {a.name: self._attribute(a, name) for a in node.attribute}
        return Node(op, tuple(node.input), tuple(node.output), name, attributes)

    def _attribute(self, attribute: Any, node: str) -> Any:
        from onnx import AttributeProto, numpy_helper

        kind = attribute.type
        if kind == AttributeProto.GRAPH:
            return self.graph(attribute.g)
        if kind == AttributeProto.TENSOR:
            return numpy_helper.to_array(attribute.t)
        if kind == AttributeProto.STRING:
            return attribute.s.decode()
        if kind == AttributeProto.STRINGS:
            return tuple(s.decode() for s in attribute.strings)
        if kind == AttributeProto.FLOAT:
            return attribute.f
        if kind == AttributeProto.INT:
            names_type = attribute.name in _TYPES and attribute.i
            return _dtype(attribute.i) if names_type else attribute.i
        if kind == AttributeProto.FLOATS:
            return tuple(attribute.floats)
        if kind == AttributeProto.INTS:
            return tuple(attribute.ints)
        raise ModelError(
            f"attribute {attribute.name!r} of node {node!r} is of a kind that the NumPy graph has "
            "no form for"
        )


def _initializers(proto: Any) -> dict[str, Array]:
    from onnx import numpy_helper

    initializers: dict[str, Array] = {}
    for tensor in proto.initializer:
        if tensor.name in initializers:
            raise ModelError(
                f"the ONNX model holds two initializers called {tensor.name!r}"
            )
        typed = (
            tensor.float_data
            or tensor.int32_data
            or tensor.int64_data
            or tensor.double_data
        )
        if tensor.raw_data and typed:
            raise ModelError(
                f"initializer {tensor.name!r} holds its data twice, as raw_data and as typed data"
            )
        initializers[tensor.name] = numpy_helper.to_array(tensor)
    for sparse in proto.sparse_initializer:
        name = sparse.values.name
        raise ModelError(f"initializer {name!r} is sparse; write it as a dense tensor")
    return initializers


def _dtype(number: int) -> str:
    from onnx import helper

    return str(helper.tensor_dtype_to_np_dtype(number))


def _info(value: Any) -> InputInfo:
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        raise ModelError(
            f"input {value.name!r} is no tensor; the NumPy backend takes tensors only"
        )
    if not tensor.HasField("shape"):
        return InputInfo(value.name, None, _dtype(tensor.elem_type))
    shape = tuple(_size(dimension) for dimension in tensor.shape.dim)
    return InputInfo(value.name, shape, _dtype(tensor.elem_type))


def _size(dimension: Any) -> int | None:
    """Return a declared length, None where it is open."""
    return dimension.dim_value if dimension.HasField("dim_value") else None
