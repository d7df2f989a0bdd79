"""Some nodes of a graph as a model of their own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx_ir import Model, Node, Value, serde

from octavo.adapters.onnx.files.message import large_tensors, placeholder
from octavo.adapters.onnx.prepare.scopes import tensors_of


def part(
    model: Model,
    nodes: Sequence[Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Serialize some nodes of a graph as a model of their own; nothing is cloned.

    Large tensors are left out, as a skeleton of the whole leaves them out.

    Args:
        model: The whole; not changed.
        nodes: In its order; bodies in them come along.
        inputs: Values that they read and do not write, beside initializers.
        outputs: Values that are put out.
    """
    used = tensors_of(nodes)
    used.update((v.name or "", v) for v in outputs if v.is_initializer())
    held = large_tensors(used.values())
    inside = _declared_inside(nodes, outputs)
    graph = onnx.GraphProto(name="part")
    graph.node.extend(map(serde.serialize_node, nodes))
    graph.input.extend(map(serde.serialize_value, inputs))
    graph.output.extend(map(serde.serialize_value, outputs))
    graph.value_info.extend(map(serde.serialize_value, inside))
    for name, value in used.items():
        is_left_out = name in held
        graph.initializer.append(_tensor(value, name, is_left_out=is_left_out))
    proto = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    for domain, version in model.graph.opset_imports.items():
        imported = onnx.OperatorSetIdProto(domain=domain, version=version)
        proto.opset_import.append(imported)
    return proto, held


def _tensor(value: Value, name: str, *, is_left_out: bool) -> onnx.TensorProto:
    tensor = value.const_value
    assert tensor is not None
    written = placeholder(tensor, name) if is_left_out else tensor
    message = serde.serialize_tensor(written)
    message.name = name
    return message


def _declared_inside(nodes: Sequence[Node], outputs: Sequence[Value]) -> list[Value]:
    """Return the values of known type that nodes write and the part does not put out."""
    put_out = set(outputs)
    found = []
    for node in nodes:
        for value in node.outputs:
            is_declared = value.name and value.type is not None
            if is_declared and value not in put_out:
                found.append(value)
    return found
