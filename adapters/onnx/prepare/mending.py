"""What ONNX Runtime takes and other readers do not, brought into the form that everybody reads.

Files written by hand, by graph surgery or by old exporters: axes written -1 or 0, domains that are
used and not imported, sparse tensors, a value declared twice. The message is changed in place; the
model computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from octavo.core.errors import ModelError

_LATEST = {"com.microsoft": 1, "ai.onnx.ml": 3}
"""What a domain is taken as where a file uses it and does not import it.

ONNX Runtime takes its newest.
"""

_MOST = 2**31
"""Elements of a sparse tensor that is made dense."""


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and every body in it at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def mend(proto: onnx.ModelProto) -> None:
    """Bring a model into the common form, in place."""
    for graph in graphs(proto.graph):
        # onnx.checker refuses a graph without a name.
        graph.name = graph.name or "graph"
        _dense(graph)
        _declared_once(graph)
        _drop_unnamed(graph)
        for value in (*graph.input, *graph.output, *graph.value_info):
            _free_axes(value.type)
        for node in graph.node:
            _dense_constant(node)
    _import_domains(proto)


def _drop_unnamed(graph: onnx.GraphProto) -> None:
    """Remove tensors without a name: nobody can read them."""
    for tensor in [tensor for tensor in graph.initializer if not tensor.name]:
        graph.initializer.remove(tensor)


def _free_axes(declared: onnx.TypeProto) -> None:
    """Declare an axis of -1 or 0 as one of any length: exporters write so what they do not know."""
    if not declared.HasField("tensor_type"):
        return
    tensor = declared.tensor_type
    if not tensor.HasField("shape"):
        return
    for axis in tensor.shape.dim:
        if axis.HasField("dim_value") and axis.dim_value <= 0:
            axis.ClearField("dim_value")


def _declared_once(graph: onnx.GraphProto) -> None:
    first: dict[str, onnx.ValueInfoProto] = {}
    for value in graph.value_info:
        first.setdefault(value.name, value)
    if len(first) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(first.values())


def _import_domains(proto: onnx.ModelProto) -> None:
    """Import every domain that a node uses, once, and write the standard one as ''.

    Raises:
        ModelError: If standard operators are used, and no opset says what they mean.
    """
    versions: dict[str, int] = {}
    for imported in proto.opset_import:
        domain = "" if imported.domain == "ai.onnx" else imported.domain
        known = versions.get(domain, 0)
        versions[domain] = max(imported.version, known)
    local = {function.domain for function in proto.functions}
    for graph in graphs(proto.graph):
        for node in graph.node:
            if node.domain == "ai.onnx":
                node.domain = ""
            if node.domain in versions:
                continue
            if node.domain == "":
                raise ModelError(
                    "the model imports no opset for the standard operators, of which it uses "
                    f"{node.op_type}; what that means depends on it"
                )
            is_local = node.domain in local
            versions[node.domain] = 1 if is_local else _LATEST.get(node.domain, 1)
    del proto.opset_import[:]
    for domain, version in versions.items():
        proto.opset_import.append(
            onnx.OperatorSetIdProto(domain=domain, version=version)
        )


def _dense(graph: onnx.GraphProto) -> None:
    for sparse in graph.sparse_initializer:
        dense = densified(sparse, sparse.values.name)
        graph.initializer.append(dense)
    del graph.sparse_initializer[:]


def _dense_constant(node: onnx.NodeProto) -> None:
    if node.op_type != "Constant":
        return
    for attribute in node.attribute:
        if attribute.HasField("sparse_tensor"):
            tensor = densified(
                attribute.sparse_tensor, node.output[0] if node.output else ""
            )
            attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def densified(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """Return a sparse tensor with its zeros.

    Its indices count elements, or are coordinates in rows.
    """
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    if math.prod(shape) > _MOST:
        raise ModelError(
            f"sparse tensor {name!r} of shape {shape} is too large to be written with its zeros"
        )
    dense = np.zeros(shape, values.dtype)
    if indices.ndim == 1:
        flat = indices
    else:
        flat = np.ravel_multi_index(tuple(indices.T), shape)
    dense.reshape(-1)[flat] = values
    return numpy_helper.from_array(dense, name)
