"""The flatbuffer of a .tflite model, read and written with the runtime's own schema classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as fb

from octavo.plugin import ModelError, raised_as

IDENTIFIER = b"TFL3"
"""Bytes 4 to 8 of every file, as the schema declares them."""

DTYPES = {
    fb.TensorType.FLOAT32: "float32",
    fb.TensorType.FLOAT16: "float16",
    fb.TensorType.FLOAT64: "float64",
    fb.TensorType.INT8: "int8",
    fb.TensorType.UINT8: "uint8",
    fb.TensorType.INT16: "int16",
    fb.TensorType.INT32: "int32",
    fb.TensorType.INT64: "int64",
    fb.TensorType.BOOL: "bool",
}
TYPES = {name: number for number, name in DTYPES.items()}
FLOAT32 = fb.TensorType.FLOAT32
CODE_NAMES = {number: name for name, number in vars(fb.BuiltinOperator).items()}


class Graph:
    """A model whose main subgraph is read; nothing in it is changed.

    Args:
        model: As the schema classes hold it.

    Attributes:
        model: The same.
        main: The first subgraph, which is what a call runs.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.main = model.subgraphs[0]
        self.tensors: Sequence[Any] = self.main.tensors
        self.nodes: Sequence[Any] = self.main.operators
        self.inputs = [int(index) for index in self.main.inputs]
        self.outputs = [int(index) for index in self.main.outputs]
        self._arrays: dict[int, np.ndarray] = {}

    @classmethod
    def from_bytes(cls, data: bytes) -> Graph:
        """Read a model.

        Raises:
            ModelError: If it is none.
        """
        if data[4:8] != IDENTIFIER:
            raise ModelError("this is no .tflite model: its identifier is missing")
        with raised_as(ModelError, "the .tflite model cannot be read", "convert again"):
            model = fb.ModelT.InitFromPackedBuf(bytearray(data), 0)
            is_split = any(buffer.offset > 1 for buffer in model.buffers)
        if is_split:
            raise ModelError(
                "the model's weights lie behind its flatbuffer, as those of more than 2 GB do, "
                "and are not read from there; convert it in parts"
            )
        return cls(model)

    @classmethod
    def from_source(cls, source: Any) -> Graph:
        """Read a path, or take a model as the schema classes hold it.

        Raises:
            ModelError: If it cannot be read.
        """
        if isinstance(source, fb.ModelT):
            return cls(source)
        path = Path(source)
        with raised_as(ModelError, f"{path} cannot be read"):
            data = path.read_bytes()
        return cls.from_bytes(data)

    def with_constants(self, changed: Mapping[int, np.ndarray]) -> Graph:
        """Return the same model with other arrays in constant tensors; it shares all else."""
        model, main = copy(self.model), copy(self.main)
        model.buffers, main.tensors = list(model.buffers), list(main.tensors)
        model.subgraphs = [main, *model.subgraphs[1:]]
        for index, array in changed.items():
            main.tensors[index] = copy(main.tensors[index])
            main.tensors[index].buffer = len(model.buffers)
            model.buffers.append(buffer_of(array))
        return Graph(model)

    def widened(self) -> Graph:
        """Return the model with its float16 constants in float32, as its operators compute."""
        held: dict[int, np.ndarray] = {}
        kept = []
        for node in self.nodes:
            is_decoding = self.code(node) == "DEQUANTIZE"
            array = self.constant(int(node.inputs[0])) if is_decoding else None
            if array is None or array.dtype != np.float16:
                kept.append(node)
            else:
                held[int(node.outputs[0])] = array.astype(np.float32)
        if not held:
            return self
        model = self.with_constants(held).model
        model.subgraphs[0].operators = kept
        return Graph(model)

    def code(self, node: Any) -> str:
        """Return an operator's name in the schema: ``CONV_2D``."""
        code = self.model.operatorCodes[node.opcodeIndex]
        # Codes below 127 stand in the older field alone in files of older converters.
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return str(CODE_NAMES.get(number, "CUSTOM"))

    def name(self, index: int) -> str:
        """Return a tensor's name as the file has it."""
        held = self.tensors[index].name
        return held.decode("utf-8", "replace") if held else f"tensor_{index}"

    def dtype(self, index: int) -> str:
        """Return a tensor's dtype by NumPy's name; the schema's number where NumPy has none."""
        number = self.tensors[index].type
        return DTYPES.get(number, f"type {number}")

    def holds_codes(self, index: int) -> bool:
        """Return whether a tensor has a scale."""
        held = self.tensors[index].quantization
        return held is not None and held.scale is not None and len(held.scale) > 0

    def shape(self, index: int) -> tuple[int | None, ...]:
        """Return a tensor's shape; None for lengths that a call decides."""
        tensor = self.tensors[index]
        declared = tensor.shapeSignature
        if declared is None:
            declared = tensor.shape
        if declared is None:
            return ()
        return tuple(None if n < 0 else int(n) for n in declared)

    def varies(self, index: int) -> bool:
        """Return whether a tensor is there and is no constant."""
        return index >= 0 and self.constant(int(index)) is None

    def constant(self, index: int) -> np.ndarray | None:
        """Return the array of a constant tensor; None for any other, or one of no NumPy dtype."""
        if index < 0:
            return None
        tensor = self.tensors[index]
        held = self.model.buffers[tensor.buffer].data
        if held is None or len(held) == 0 or tensor.type not in DTYPES:
            return None
        if index not in self._arrays:
            data = np.asarray(held, np.uint8).tobytes()
            array = np.frombuffer(data, DTYPES[tensor.type])
            shape = () if tensor.shape is None else tuple(tensor.shape)
            self._arrays[index] = array.reshape(shape)
        return self._arrays[index]


def buffer_of(array: np.ndarray) -> Any:
    """Return an array as a buffer of the file."""
    held = fb.BufferT()
    held.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    return held


def quantization(scale: Any, zero_point: Any, axis: int = 0) -> Any:
    """Return quantization parameters: one scale, or one for each place along an axis."""
    made = fb.QuantizationParametersT()
    made.scale = np.atleast_1d(np.asarray(scale, np.float32))
    made.zeroPoint = np.atleast_1d(np.asarray(zero_point, np.int64))
    made.quantizedDimension = axis
    return made
