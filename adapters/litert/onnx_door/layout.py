"""The conversion in progress: values in the orders in which they are held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .building import Builder, Order, Shape, Value, channels_last, identity
from .reading import Graph, Node

IMAGE = 4
"""Axes of an image: batch, channels, rows, columns."""


def lasting(order: Order, shape: Shape) -> tuple[int, ...]:
    """Return the axes of an order that have more than one element: where these agree, memory does
    too."""
    return tuple(axis for axis in order if shape[axis] != 1)


def permuted(items: Sequence[int], order: Order) -> tuple[int, ...]:
    """Return what belongs to each stored axis."""
    return tuple(items[axis] for axis in order)


class Conversion:
    """A graph on its way into a flatbuffer."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.builder = Builder()
        self.values: dict[str, Value] = {}
        self.inputs: dict[str, int] = {}
        for name in graph.inputs:
            shape = graph.shape(name)
            index = self.builder.tensor(name, shape, graph.dtype(name))
            self.inputs[name] = index
            held = {identity(len(shape)): index}
            self.values[name] = Value(shape, graph.dtype(name), held)

    # What is there.

    def value(self, name: str) -> Value:
        """Return a value; constants come into being when they are asked for."""
        if name not in self.values:
            array = self.graph.constants[name]
            self.values[name] = Value(array.shape, str(array.dtype), constant=array)
        return self.values[name]

    def constant(self, name: str) -> np.ndarray | None:
        """Return a value's array, or None where it is computed or left out."""
        return self.graph.constants.get(name)

    def known(self, node: Node, attribute: str, index: int) -> Any:
        """Return what later operator sets take as an input and earlier ones as an attribute.

        Returns:
            A list of numbers, or None where it is left out.

        Raises:
            ModelError: If it is computed.
        """
        if attribute in node.attributes:
            found = np.asarray(node.attributes[attribute])
        elif not node.given(index):
            return None
        else:
            stored = self.constant(node.inputs[index])
            if stored is None:
                raise node.refused(f"its {attribute} must be constant")
            found = stored
        return np.atleast_1d(found).tolist()

    def tensor(self, name: str, order: Order | None = None) -> int:
        """Return the tensor that holds a value in an order: the one of ONNX by default.

        A transpose is written where none does; a reshape, where only axes of one element move.
        """
        value = self.value(name)
        return self.held(name, value, order or identity(len(value.shape)))

    def held(self, name: str, value: Value, order: Order) -> int:
        """Return the tensor that holds a value in an order."""
        if order in value.held:
            return value.held[order]
        if value.constant is not None:
            index = self.builder.constant(name, value.constant.transpose(order))
        else:
            index = self._reordered(name, self._source(name, value, order), order)
        value.held[order] = index
        return index

    def _source(
        self, name: str, value: Value, order: Order
    ) -> tuple[Value, Order, int]:
        """Return the tensor that the wanted order is made from."""
        if value.image is not None and not value.held:
            image = self.held(name, value.image, identity(len(value.image.shape)))
            flat = self.reshaped(image, f"{name}/flat", value.shape, value.dtype)
            value.held[identity(2)] = flat
        for known, index in value.held.items():
            if lasting(known, value.shape) == lasting(order, value.shape):
                return value, known, index
        known, index = next(iter(value.held.items()))
        return value, known, index

    def _reordered(
        self, name: str, source: tuple[Value, Order, int], order: Order
    ) -> int:
        value, known, index = source
        wanted = permuted(value.shape, order)
        if lasting(known, value.shape) == lasting(order, value.shape):
            return self.reshaped(index, f"{name}/layout", wanted, value.dtype)
        steps = [known.index(axis) for axis in order]
        made = self.builder.tensor(f"{name}/transpose", wanted, value.dtype)
        axes = self.integers(steps)
        self.builder.operator(
            "TRANSPOSE", [index, axes], [made], schema.TransposeOptionsT()
        )
        return made

    def reshaped(self, index: int, name: str, shape: Shape, dtype: str) -> int:
        """Add a reshape of a tensor; return its result."""
        made = self.builder.tensor(name, shape, dtype)
        self.builder.operator("RESHAPE", [index, self.integers(shape)], [made], None)
        return made

    def integers(self, numbers: Sequence[int]) -> int:
        """Add a constant of int32 numbers; return its tensor."""
        array = np.array(numbers, np.int32)
        return self.builder.constant("numbers", array)

    def sizes(self, node: Node, shape: Shape) -> int:
        """Return the tensor of a shape whose first size may be that of the batch.

        Raises:
            ModelError: If another size is not known.
        """
        if -1 not in shape:
            return self.integers(shape)
        batched = [name for name in self.inputs if self.values[name].shape[:1] == (-1,)]
        if -1 in shape[1:] or not batched:
            raise node.refused("a size is only known when the model runs")
        given = self.builder.tensor(f"{node.name}/given", (-1,), "int32")
        asks = schema.ShapeOptionsT()
        asks.outType = schema.TensorType.INT32
        self.builder.operator("SHAPE", [self.inputs[batched[0]]], [given], asks)
        first = self.builder.tensor(f"{node.name}/batch", (1,), "int32")
        options: Any = schema.StridedSliceOptionsT()
        bounds = [self.integers((number,)) for number in (0, 1, 1)]
        self.builder.operator("STRIDED_SLICE", [given, *bounds], [first], options)
        whole = self.builder.tensor(f"{node.name}/shape", (len(shape),), "int32")
        pair = [first, self.integers(shape[1:])]
        options = schema.ConcatenationOptionsT()
        self.builder.operator("CONCATENATION", pair, [whole], options)
        return whole

    def common(self, names: Sequence[str], rank: int) -> Order:
        """Return the order in which an operator of several values is least work.

        Images lie as convolutions have left one of them; sequences as ONNX has them, where one
        does.
        """
        orders = [
            self.value(name).natural
            for name in names
            if self.value(name).constant is None and len(self.value(name).shape) == rank
        ]
        plain = identity(rank)
        changed = [order for order in orders if order != plain]
        if rank != IMAGE and plain in orders:
            return plain
        return next(iter(changed), plain)

    def aligned(self, name: str, order: Order) -> int:
        """Return the tensor of a value for arithmetic that broadcasts, as ONNX does, from the last
        axis on."""
        value = self.value(name)
        missing = len(order) - len(value.shape)
        if value.constant is not None:
            wide = value.constant.reshape((1,) * missing + value.constant.shape)
            array = wide.transpose(order)
            while array.ndim and array.shape[0] == 1:
                array = array[0]
            return self.builder.constant(name, array)
        if not missing:
            return self.tensor(name, order)
        wide_shape = (1,) * missing + value.shape
        stored = self.reshaped(
            self.tensor(name), f"{name}/wide", wide_shape, value.dtype
        )
        wider = Value(wide_shape, value.dtype, {identity(len(order)): stored})
        return self.held(name, wider, order)

    # What is added.

    def emit(
        self,
        node: Node,
        code: str,
        inputs: Sequence[int],
        order: Order | None = None,
        options: Any = None,
        which: int = 0,
    ) -> Any:
        """Add the operator that computes an output of a node.

        Args:
            node: Gives the tensor its name.
            code: Name of the operator in the schema.
            inputs: Tensors.
            order: How the output lies; ONNX's order by default.
            options: Of the schema.
            which: Number of the output.
        """
        made = self.made(node, order, which)
        return self.builder.operator(code, inputs, [made], options)

    def made(self, node: Node, order: Order | None = None, which: int = 0) -> int:
        """Add the tensor of an output of a node."""
        name = node.outputs[which]
        shape = self.graph.shape(name)
        stored = order or identity(len(shape))
        title = node.name if which == 0 else f"{node.name}:{which}"
        dtype = self.graph.dtype(name)
        index = self.builder.tensor(title, permuted(shape, stored), dtype)
        self.values[name] = Value(shape, dtype, {stored: index})
        return index

    def step(
        self,
        node: Node,
        code: str,
        inputs: Sequence[int],
        shape: Shape,
        options: Any = None,
    ) -> int:
        """Add an operator between others of one node; return its result, a float32 tensor."""
        name = f"{node.name}/{code.lower()}"
        made = self.builder.tensor(name, shape, "float32")
        self.builder.operator(code, inputs, [made], options)
        return made

    def number(self, value: float) -> int:
        """Add one float32 number; return its tensor."""
        return self.builder.constant("number", np.array(value, np.float32))

    def same(self, node: Node, name: str, value: Value) -> None:
        """Let a node's output be what another value is held in: who reads one reads both."""
        output = node.outputs[0]
        self.values[output] = value
        self.graph.uses[output] += self.graph.uses[name] - 1


Writer = Callable[[Conversion, Node], None]
"""Writes the operators of one node."""


def image_order(value: Value, node: Node) -> Order:
    """Return channels last, for a value that must be an image.

    Raises:
        ModelError: If it has other than two axes beside batch and channels.
    """
    if len(value.shape) != 4:
        raise node.refused(f"LiteRT has it for images; this has shape {value.shape}")
    return channels_last(4)
