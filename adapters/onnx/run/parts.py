"""Some nodes of a graph as a model of their own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx_ir import Model, Node, Value
from onnx_ir.serde import serialize_node, serialize_tensor, serialize_value

from octavo.adapters.onnx.files.message import Held, large_tensors, placeholder
from octavo.adapters.onnx.prepare.scopes import tensors_of


def part(
    model: Model,
    nodes: Sequence[Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
) -> tuple[onnx.ModelProto, Held]:
    """Serialize some nodes of a graph as a model of their own; nothing is cloned.

    Large tensors are left out, as a skeleton of the whole leaves them out.

    Args:
        model: The whole; not changed.
        nodes: In its order; bodies in them come along.
        inputs: Values that they read and do not write, beside initializers.
        outputs: Values that are put out.
    """
    used = tensors_of(nodes)
    for value in outputs:
        if value.is_initializer():
            used[value.name or ""] = value
    held = large_tensors(used.values())
    inside = _declared_inside(nodes, outputs)
    graph = onnx.GraphProto(name="part")
    graph.node.extend(map(serialize_node, nodes))
    graph.input.extend(map(serialize_value, inputs))
    graph.output.extend(map(serialize_value, outputs))
    graph.value_info.extend(map(serialize_value, inside))
    for name, value in used.items():
        message = _tensor(value, name, is_left_out=name in held)
        graph.initializer.append(message)
    proto = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    for domain, version in model.graph.opset_imports.items():
        imported = onnx.OperatorSetIdProto(domain=domain, version=version)
        proto.opset_import.append(imported)
    return proto, held


def _tensor(value: Value, name: str, *, is_left_out: bool) -> onnx.TensorProto:
    tensor = value.const_value
    assert tensor is not None
    if is_left_out:
        tensor = placeholder(tensor, name)
    message = serialize_tensor(tensor)
    message.name = name
    return message


def _declared_inside(nodes: Sequence[Node], outputs: Sequence[Value]) -> list[Value]:
    """Return the values of known type that nodes write and the part does not put out."""
    put_out = set(outputs)
    found = []
    for node in nodes:
        for value in node.outputs:
            if not value.name or value.type is None:
                continue
            if value not in put_out:
                found.append(value)
    return found
