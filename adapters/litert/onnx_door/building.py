"""A float flatbuffer that grows op by op, and the orders in which its tensors lie.

ONNX computes with channels second, LiteRT with channels last. A :class:`Value` keeps ONNX's axes
and remembers in which orders of them it is held; whoever needs another order asks for it, and only
then a transpose is written. A Transpose of ONNX is thereby a renaming, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from octavo.plugin import ModelError

Shape = tuple[int, ...]
"""Sizes of axes; -1 where a size is only known when the model runs."""

Order = tuple[int, ...]
"""For each axis that is stored: which axis of ONNX it is."""

FILE = b"TFL3"
VERSION = 3  # of the schema: the only one that runtimes read
OLD_CODES = 127  # what the schema's first field for an operator's code holds at most

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}
"""Name of a NumPy dtype -> what the schema calls it."""


VERSIONS = {"BROADCAST_TO": 2}
"""Operator -> the first version of it that runtimes have, where that is not 1."""


def identity(rank: int) -> Order:
    """Return the order in which ONNX has the axes."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """Return the order in which LiteRT's convolutions take an image: (0, 2, 3, 1)."""
    return (0, *range(2, rank), 1)


def name_of(number: int) -> str:
    """Return the name of an operator in the schema."""
    names = vars(schema.BuiltinOperator).items()
    return str(next(name for name, value in names if value == number))


@dataclass
class Value:
    """One value of the ONNX graph.

    Attributes:
        shape: In ONNX's axes.
        dtype: Name of a NumPy dtype.
        held: Order -> index of the tensor that holds the value so.
        constant: Its array, where it is one; in ONNX's axes.
        image: Of a flattened image: the image, whose channels a following product may take in any
            order.
    """

    shape: Shape
    dtype: str = "float32"
    held: dict[Order, int] = field(default_factory=dict)
    constant: np.ndarray | None = None
    image: Value | None = None

    @property
    def natural(self) -> Order:
        """The order in which it was made."""
        return next(iter(self.held), identity(len(self.shape)))


class Builder:
    """The parts of a flatbuffer with one subgraph."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.arrays: dict[int, np.ndarray] = {}
        self.operators: list[Any] = []
        self.makers: dict[int, Any] = {}
        self._codes: list[int] = []

    def tensor(self, name: str, shape: Shape, dtype: str) -> int:
        """Add a tensor that is computed or given; return its index.

        Raises:
            ModelError: If LiteRT's arithmetic has no such dtype.
        """
        if dtype not in TYPES:
            raise ModelError(
                f"{name!r} is {dtype}, which LiteRT does not compute in; export the model in "
                "float32"
            )
        made = schema.TensorT()
        made.name = name.encode()
        made.shape = [max(size, 1) for size in shape]
        if -1 in shape:
            made.shapeSignature = list(shape)
        made.type = TYPES[dtype]
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, name: str, array: np.ndarray) -> int:
        """Add a tensor that holds an array; return its index."""
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        index = self.tensor(name, array.shape, str(array.dtype))
        self.arrays[index] = np.ascontiguousarray(array)
        return index

    def operator(
        self, code: str, inputs: Sequence[int], outputs: Sequence[int], options: Any
    ) -> Any:
        """Add an operator.

        Args:
            code: Its name in the schema (``CONV_2D``).
            inputs: Tensors; -1 for one that is left out.
            outputs: Tensors.
            options: An object of the schema, or None.
        """
        number = getattr(schema.BuiltinOperator, code)
        if number not in self._codes:
            self._codes.append(number)
        made = schema.OperatorT()
        made.opcodeIndex = self._codes.index(number)
        made.inputs = list(inputs)
        made.outputs = list(outputs)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            made.builtinOptions = options
        self.operators.append(made)
        for index in outputs:
            self.makers[index] = made
        return made

    def code(self, operator: Any) -> str:
        """Return the name of an operator in the schema."""
        return name_of(self._codes[operator.opcodeIndex])

    def packed(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
        """Return the file.

        Args:
            inputs: What users call them -> tensor.
            outputs: Likewise.
        """
        model = schema.ModelT()
        model.version = VERSION
        model.description = b"converted from ONNX"
        model.operatorCodes = [_operator_code(number) for number in self._codes]
        model.buffers = self._buffers()
        graph = schema.SubGraphT()
        graph.name = b"main"
        graph.tensors = self.tensors
        graph.operators = self.operators
        graph.inputs = list(inputs.values())
        graph.outputs = list(outputs.values())
        model.subgraphs = [graph]
        model.signatureDefs = [_signature(inputs, outputs)]
        writer = flatbuffers.Builder(1024)
        writer.Finish(model.Pack(writer), FILE)
        return bytes(writer.Output())

    def _buffers(self) -> list[Any]:
        """Return the arrays' buffers, equal arrays once; the first is empty, as the schema asks."""
        buffers = [schema.BufferT()]
        known: dict[bytes, int] = {b"": 0}
        for index, tensor in enumerate(self.tensors):
            content = b""
            if index in self.arrays:
                content = self.arrays[index].tobytes()
            if content not in known:
                known[content] = len(buffers)
                made = schema.BufferT()
                made.data = np.frombuffer(content, np.uint8)
                buffers.append(made)
            tensor.buffer = known[content]
        return buffers


def _operator_code(number: int) -> Any:
    made = schema.OperatorCodeT()
    made.deprecatedBuiltinCode = min(number, OLD_CODES)
    made.builtinCode = number
    made.version = VERSIONS.get(name_of(number), 1)
    return made


def _signature(inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    """Return what lets callers name inputs and outputs as ONNX did."""

    def entries(named: Mapping[str, int]) -> list[Any]:
        made = []
        for name, index in named.items():
            entry = schema.TensorMapT()
            entry.name = name.encode()
            entry.tensorIndex = index
            made.append(entry)
        return made

    signature = schema.SignatureDefT()
    signature.signatureKey = b"serving_default"
    signature.inputs = entries(inputs)
    signature.outputs = entries(outputs)
    return signature
