"""Which opset a model is pinned to: what the runtime executes.

Never what the onnx package happens to default to.
"""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir import Model, Node

from octavo.adapters.onnx.files.message import refill, skeleton
from octavo.core.errors import ModelError

OLDEST = 13
"""Per-channel QuantizeLinear begins here."""

NEWEST = 24
"""The newest opset that ONNX Runtime 1.20 to 1.32 executes throughout.

Q/DQ kernels included (1.32 has none for 28).
"""

CONVERTED = 21
"""What older models are converted to: the first with 4-bit and 16-bit QuantizeLinear."""

IR_VERSION = 10
"""The IR version of every model that is written.

The first with 4-bit tensors, and old enough for all supported runtimes.
"""

_DOMAINS = ("", "ai.onnx")


def as_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Return a graph as a model of the opset that older ones are converted to."""
    imports = [onnx.helper.make_opsetid("", CONVERTED)]
    made: onnx.ModelProto = onnx.helper.make_model(
        graph, opset_imports=imports, ir_version=IR_VERSION
    )
    return made


def pin(model: Model) -> Model:
    """Return the model with its default opset in [OLDEST, NEWEST].

    A newer one is relabelled where every op in use means the same at :data:`NEWEST`; an older one
    is converted.

    Raises:
        ModelError: If an op changed in between, or cannot be converted.
    """
    model.ir_version = IR_VERSION
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    # Only other domains; the ops that quantization adds still need one.
    if version is None:
        model.opset_imports[""] = CONVERTED
    elif version > NEWEST:
        _relabel(model, version)
    elif version < OLDEST:
        model = _convert(model, version)
    return model


def _relabel(model: Model, version: int) -> None:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain not in _DOMAINS:
            continue
        if not is_unchanged(node, version, NEWEST):
            raise ModelError(
                f"op {node.name!r} ({node.op_type}) of opset {version} means something else, "
                f"or does not exist, at opset {NEWEST}, which the runtime executes; "
                f"export the model with opset {NEWEST} or older"
            )
        # A node may name the opset that it was written for.
        if node.version is not None:
            node.version = None
    model.opset_imports[""] = NEWEST


def is_unchanged(node: Node, version: int, other: int) -> bool:
    """True if a node means the same at two opsets, the tensor types that it takes left aside."""
    try:
        now = onnx.defs.get_schema(node.op_type, version, "")
        then = onnx.defs.get_schema(node.op_type, other, "")
    except onnx.defs.SchemaError:
        return False
    if now.since_version == then.since_version:
        return True
    return _signature(now) == _signature(then)


def _signature(schema: onnx.defs.OpSchema) -> object:
    """Everything but the tensor types it takes: most revisions after opset 24 only add types."""
    attributes = {}
    for name, attribute in schema.attributes.items():
        default = str(attribute.default_value)
        attributes[name] = (attribute.type, attribute.required, default)
    inputs = [(i.name, i.option) for i in schema.inputs]
    outputs = [(o.name, o.option) for o in schema.outputs]
    return attributes, inputs, outputs


def _convert(model: Model, version: int) -> Model:
    # Weights stay out: the converter need not see them, and protobuf ends at 2 GB.
    proto, held = skeleton(model)
    try:
        converted = onnx.version_converter.convert_version(proto, CONVERTED)
    except Exception as error:
        # The converter raises bare RuntimeErrors, one kind for everything.
        raise ModelError(
            f"the model has opset {version}; quantization needs {OLDEST} or newer, "
            f"and onnx cannot convert it to {CONVERTED}: {error}. "
            f"Export it again with opset {OLDEST} or newer"
        ) from error
    result: Model = ir.from_proto(converted)
    refill(result, held)
    result.ir_version = IR_VERSION
    return result
