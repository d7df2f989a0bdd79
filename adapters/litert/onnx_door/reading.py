"""An ONNX file as nodes with known shapes; what is constant is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import infer_node_outputs

from octavo.plugin import ModelError, raised_as

from .building import Shape
from .gelus import with_gelus

MOVES = frozenset(
    {"Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Cast", "Identity", "Reshape"}
    | {"Equal", "Where"}
)
"""What may be done with a shape of which a size is unknown: it moves numbers, or asks whether one
is -1."""

UNKNOWN = -(2**40)
"""Stands in such a shape for the size; -1 has a meaning of its own there."""

SHOWN = 2**16
"""Elements of a constant that shape inference may look at: shapes and axes, no weights."""


SLIDING = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool"})
"""What LiteRT has for images only, and ONNX for sequences too."""

SLIDING_OF_ONE = {
    "kernel_shape": 1,
    "strides": 1,
    "dilations": 1,
    "pads": 0,
    "output_padding": 0,
}
"""Attribute -> its number along an axis of one element."""

INTRODUCED = {"Gelu": 20}
"""What nodes become here -> the operator set that brought it."""


@dataclass(frozen=True)
class Node:
    """One operator of ONNX.

    Attributes:
        name: The node's own, or its first output's where it has none.
        kind: ``Conv``.
        inputs: Names of values; empty for one that is left out.
        outputs: Likewise.
        attributes: Name -> value; tensors as arrays, texts as text.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def given(self, index: int) -> str:
        """Return the name of an input, or '' where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def refused(self, why: str) -> ModelError:
        """Return the error that names this node."""
        return ModelError(
            f"node {self.name!r} ({self.kind}) cannot be converted to LiteRT: {why}"
        )


class Graph:
    """An ONNX model, read node by node in its order.

    Attributes:
        inputs: Names of what is given with each call.
        outputs: Names of what is returned.
        uses: Value -> how many nodes and outputs read it.
        constants: Value -> array; those that nodes compute from constants come as they are met.
    """

    def __init__(self, path: Path) -> None:
        with raised_as(ModelError, f"{path} cannot be read", "is it an ONNX file?"):
            model = inline_local_functions(onnx.load(str(path)))
        self._model = model
        graph = model.graph
        self.constants: dict[str, np.ndarray] = {}
        self._types: dict[str, Any] = {}
        self._unknown: set[str] = set()
        for stored in graph.initializer:
            self._keep(stored.name, numpy_helper.to_array(stored))
        given = [i for i in graph.input if i.name not in self.constants]
        for one in given:
            self._types[one.name] = one.type
        self.inputs = tuple(i.name for i in given)
        self.outputs = tuple(o.name for o in graph.output)
        self.uses = Counter(self.outputs)
        self.opset = 1
        for imported in model.opset_import:
            if imported.domain in ("", "ai.onnx"):
                self.opset = imported.version
        self._protos = with_gelus(graph)
        for proto in self._protos:
            self.uses.update(name for name in proto.input if name)

    def nodes(self) -> Iterator[tuple[Node, Any]]:
        """Yield the nodes in order, those of sequences as nodes of images one pixel high.

        Each must be :meth:`met` before the next is asked for.
        """
        taken: Counter[str] = Counter()
        for proto in self._protos:
            for one in self._of_images(proto):
                yield _node(one, taken), one

    def _of_images(self, proto: Any) -> list[Any]:
        is_sliding = proto.op_type in SLIDING
        if not is_sliding or len(self.shape(proto.input[0])) != 3:
            return [proto]
        sequence, image = proto.input[0], f"{proto.output[0]}/image"
        made = onnx.NodeProto()
        made.CopyFrom(proto)
        made.input[0], made.output[0] = f"{proto.output[0]}/wide", image
        if len(proto.input) > 1:
            made.input[1] = f"{proto.output[0]}/kernel"
            kernel = self.constants.get(proto.input[1])
            if kernel is None:
                return [proto]
            self._keep(made.input[1], kernel[:, :, None])
        for attribute in made.attribute:
            if attribute.name in SLIDING_OF_ONE:
                ints, still = list(attribute.ints), SLIDING_OF_ONE[attribute.name]
                half = len(ints) // 2 if attribute.name == "pads" else len(ints)
                parts = (ints[:half], ints[half:]) if half < len(ints) else (ints,)
                attribute.ints[:] = [n for part in parts for n in (still, *part)]
        for name in (made.input[0], image):
            self.uses[name] = 1
        return [
            self._along("Unsqueeze", sequence, made.input[0]),
            made,
            self._along("Squeeze", image, proto.output[0]),
        ]

    def _along(self, kind: str, name: str, result: str) -> Any:
        """Return a node that adds or removes axis 2."""
        title = f"{result}/{kind.lower()}"
        if self.opset < 13:
            return helper.make_node(kind, [name], [result], title, axes=[2])
        self._keep(f"{title}/axes", np.array([2], np.int64))
        return helper.make_node(kind, [name, f"{title}/axes"], [result], title)

    def shape(self, name: str) -> Shape:
        """Return a value's sizes, -1 where one is not known.

        Raises:
            ModelError: If not even the number of its axes is known.
        """
        kind = self._types[name].tensor_type
        if not kind.HasField("shape"):
            raise ModelError(
                f"the shape of {name!r} is not known; export the model with fixed shapes"
            )
        return tuple(
            d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim
        )

    def dtype(self, name: str) -> str:
        """Return the name of a value's NumPy dtype."""
        kind = self._types[name].tensor_type.elem_type
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(kind)))

    def met(self, node: Node, proto: Any) -> bool:
        """Find out what a node returns; return whether that is constant and so needs no operator.

        Raises:
            ModelError: If ONNX itself does not know it, or its shapes do not fit.
        """
        if node.kind == "Shape":
            sizes = np.array(self.shape(node.inputs[0]), np.int64)
            sizes[sizes < 0] = UNKNOWN
            start, end = node.attributes.get("start", 0), node.attributes.get("end")
            self._keep(node.outputs[0], sizes[start:end], of_shapes=True)
            return True
        of_constants = all(name in self.constants for name in node.inputs if name)
        grows = node.kind == "Expand" and not self._unknown.isdisjoint(node.inputs)
        if of_constants and not grows:
            self._compute(node, proto)
            return True
        self._infer(node, proto)
        return False

    def _keep(self, name: str, array: np.ndarray, *, of_shapes: bool = False) -> None:
        self.constants[name] = array
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self._types[name] = helper.make_tensor_type_proto(kind, array.shape)
        if of_shapes and (array == UNKNOWN).any():
            self._unknown.add(name)

    def _compute(self, node: Node, proto: Any) -> None:
        reads_unknown = not self._unknown.isdisjoint(node.inputs)
        if reads_unknown and node.kind not in MOVES:
            raise node.refused(
                "it computes with a size that is not known before the model runs; export it with "
                "fixed shapes"
            )
        with raised_as(ModelError, f"node {node.name!r} ({node.kind})", "check it"):
            arrays = {name: self.constants[name] for name in node.inputs if name}
            results = self._alone(proto, arrays).run(None, arrays)
        for name, array in zip(node.outputs, results, strict=True):
            self._keep(name, np.asarray(array), of_shapes=reads_unknown)

    def _alone(self, proto: Any, arrays: dict[str, np.ndarray]) -> ReferenceEvaluator:
        """Return a model of one node, of this model's operator set."""
        inputs = [helper.make_value_info(name, self._types[name]) for name in arrays]
        outputs = [onnx.ValueInfoProto(name=name) for name in proto.output]
        graph = helper.make_graph([proto], "alone", inputs, outputs)
        model = helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
        )
        return ReferenceEvaluator(model)

    def _stated(self, node: Node) -> None:
        """Say with ONNX's own words what shape a Reshape or Expand of unknown sizes asks for.

        Raises:
            ModelError: If there are no words for it.
        """
        name = node.given(1)
        if node.kind not in ("Reshape", "Expand") or name not in self._unknown:
            return
        old = self.shape(node.inputs[0])
        asked = self.constants[name].copy()
        is_reshape = node.kind == "Reshape"
        for place in np.flatnonzero(asked == UNKNOWN):
            stays = place < len(old) and old[place] < 0
            asked[place] = 0 if stays and is_reshape else -1
        if (asked == -1).sum() > 1:
            raise node.refused(
                "several sizes are only known when the model runs; export it with fixed shapes"
            )
        self.constants[name] = asked

    def _infer(self, node: Node, proto: Any) -> None:
        self._stated(node)
        if node.kind == "Expand":
            self._types[node.outputs[0]] = self._expanded(node)
            return
        known = {name: self._types[name] for name in node.inputs if name}
        small = {}
        for name in known:
            array = self.constants.get(name)
            if array is not None and array.size <= SHOWN:
                small[name] = numpy_helper.from_array(array, name)
        with raised_as(ModelError, f"node {node.name!r} ({node.kind})", "check it"):
            opset = max(self.opset, INTRODUCED.get(node.kind, 1))
            kind = onnx.defs.get_schema(node.kind, opset, proto.domain)
            found = infer_node_outputs(
                kind,
                proto,
                known,
                small,
                opset_imports=list(self._model.opset_import),
                ir_version=self._model.ir_version,
            )
        self._types.update(found)

    def _expanded(self, node: Node) -> Any:
        """Return the type of an Expand, which ONNX's inference does not tell for unknown sizes."""
        old = self.shape(node.inputs[0])
        asked = self.constants.get(node.inputs[1])
        if asked is None:
            raise node.refused("its shape must be constant")
        rank = max(len(old), len(asked))
        wide = (1,) * (rank - len(old)) + old
        wanted = [1] * (rank - len(asked)) + asked.tolist()
        shape = [b if a == 1 else a for a, b in zip(wide, wanted, strict=True)]
        sizes = [None if size < 0 else size for size in shape]
        kind = self._types[node.inputs[0]].tensor_type.elem_type
        return helper.make_tensor_type_proto(kind, sizes)


def _node(proto: Any, taken: Counter[str]) -> Node:
    attributes = {}
    for attribute in proto.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        attributes[attribute.name] = value
    name = proto.name or proto.output[0]
    taken[name] += 1
    if taken[name] > 1:
        name = f"{name}_{taken[name]}"
    outputs = tuple(proto.output)
    return Node(name, proto.op_type, tuple(proto.input), outputs, attributes)
