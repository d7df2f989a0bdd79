"""From ONNX to the graph. The only module of this backend that imports onnx, and only when it is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.adapters.numpy.graph import Graph, Node
from octavo.adapters.numpy.kernels import supported
from octavo.core.errors import MissingFramework, ModelError, UnsafeFile
from octavo.core.values.graph import InputInfo

if TYPE_CHECKING:
    import onnx

_DEFAULT_DOMAINS = ("", "ai.onnx")


def from_onnx(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Graph:
    """Read a model from a path, bytes or a ModelProto.

    Raises:
        MissingFramework: If onnx is not installed.
        ModelError: If it is no valid model, or uses what the graph has no form for.
        UnsafeFile: If external data lies outside the model's folder.
    """
    try:
        import onnx
        from onnx import checker, inliner
    except ImportError as error:
        raise MissingFramework(
            f"reading an ONNX model needs onnx: {error}. pip install 'octavo[onnx]'"
        ) from error
    if isinstance(source, onnx.ModelProto):
        model = source
    else:
        try:
            model = (
                onnx.load_from_string(source) if isinstance(source, bytes) else _load(Path(source))
            )
        except UnsafeFile:
            raise
        except Exception as error:  # protobuf, onnx and the file system raise many kinds
            raise ModelError(
                f"{source if not isinstance(source, bytes) else 'the bytes'!r} cannot be read as an ONNX model: {error}"
            ) from error
    if not model.graph.node and not model.graph.output:
        raise ModelError("the ONNX model is empty: it has no nodes and no outputs")
    if model.functions:
        model = inliner.inline_local_functions(model)
    opset = next((o.version for o in model.opset_import if o.domain in _DEFAULT_DOMAINS), 0)
    if not opset:
        raise ModelError(
            "the ONNX model does not say which operator set it uses; add an opset_import of the default domain"
        )
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        raise ModelError(f"the ONNX model is not valid: {error}") from error
    return _Reader(opset).graph(model.graph).check()


def _load(path: Path) -> onnx.ModelProto:
    import onnx
    from onnx import external_data_helper

    model = onnx.load(str(path), load_external_data=False)
    folder = path.resolve().parent
    for tensor in external_data_helper._get_all_tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        info = external_data_helper.ExternalDataInfo(tensor)
        target = folder / info.location
        if (
            Path(info.location).is_absolute()
            or ".." in Path(info.location).parts
            or target.is_symlink()
            or not target.resolve().is_relative_to(folder)
        ):
            raise UnsafeFile(
                f"tensor {tensor.name!r} of {path} keeps its data in {info.location!r}, outside the model's folder; refused"
            )
        if not target.is_file():
            raise ModelError(
                f"tensor {tensor.name!r} of {path} keeps its data in {info.location!r}, which is missing"
            )
        if target.stat().st_nlink > 1:
            raise UnsafeFile(
                f"tensor {tensor.name!r} of {path} keeps its data in {info.location!r}, which is a hard link; refused"
            )
        if (info.offset or 0) + (info.length or 0) > target.stat().st_size:
            raise ModelError(
                f"tensor {tensor.name!r} of {path} needs {info.length} bytes of {info.location!r}, which is too short"
            )
    external_data_helper.load_external_data_for_model(model, str(folder))
    return model


class _Reader:
    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._count = 0

    def graph(self, proto: Any) -> Graph:
        from onnx import numpy_helper

        initializers: dict[str, np.ndarray] = {}
        for tensor in proto.initializer:
            if tensor.name in initializers:
                raise ModelError(f"the ONNX model holds two initializers called {tensor.name!r}")
            if tensor.raw_data and (
                tensor.float_data or tensor.int32_data or tensor.int64_data or tensor.double_data
            ):
                raise ModelError(
                    f"initializer {tensor.name!r} holds its data twice, as raw_data and as typed data"
                )
            initializers[tensor.name] = numpy_helper.to_array(tensor)
        for sparse in proto.sparse_initializer:
            raise ModelError(
                f"initializer {sparse.values.name!r} is sparse; write it as a dense tensor"
            )
        names: dict[str, int] = {}
        nodes = []
        for node in proto.node:
            op = (
                node.op_type if node.domain in _DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"
            )
            if op != node.op_type and not supported(op, self._opset):
                raise ModelError(
                    f"node {node.name or node.op_type!r} is a {op}, which the NumPy backend does not have; export it with the default domain"
                )
            name = node.name or f"{node.op_type}_{self._count}"
            self._count += 1
            names[name] = names.get(name, 0) + 1
            name = name if names[name] == 1 else f"{name}_{names[name] - 1}"
            attributes = {a.name: self._attribute(a, name) for a in node.attribute}
            nodes.append(Node(op, tuple(node.input), tuple(node.output), name, attributes))
        inputs = tuple(_info(v) for v in proto.input if v.name not in initializers)
        return Graph(
            tuple(nodes), initializers, inputs, tuple(o.name for o in proto.output), self._opset
        )

    def _attribute(self, attribute: Any, node: str) -> Any:
        from onnx import AttributeProto, helper, numpy_helper

        kind = attribute.type
        if kind == AttributeProto.GRAPH:
            return self.graph(attribute.g)
        if kind == AttributeProto.TENSOR:
            return numpy_helper.to_array(attribute.t)
        if kind == AttributeProto.STRING:
            return attribute.s.decode()
        if kind == AttributeProto.STRINGS:
            return tuple(s.decode() for s in attribute.strings)
        if kind in (AttributeProto.INT, AttributeProto.FLOAT):
            value = helper.get_attribute_value(attribute)
            return (
                _dtype(value)
                if attribute.name
                in ("to", "dtype", "output_dtype", "precision", "softmax_precision")
                and kind == AttributeProto.INT
                and value
                else value
            )
        if kind in (AttributeProto.INTS, AttributeProto.FLOATS):
            return tuple(helper.get_attribute_value(attribute))
        raise ModelError(
            f"attribute {attribute.name!r} of node {node!r} is of a kind that the NumPy graph has no form for"
        )


def _dtype(number: int) -> str:
    from onnx import helper

    return str(helper.tensor_dtype_to_np_dtype(number))


def _info(value: Any) -> InputInfo:
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        raise ModelError(f"input {value.name!r} is no tensor; the NumPy backend takes tensors only")
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return InputInfo(value.name, shape, _dtype(tensor.elem_type))
