"""The flatbuffer of a .tflite model, read and written with the runtime's own schema classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import flatbuffers
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
_CODE_NAMES = {number: name for name, number in vars(fb.BuiltinOperator).items()}


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
            return cls(fb.ModelT.InitFromPackedBuf(bytearray(data), 0))

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
        return str(_CODE_NAMES.get(number, "CUSTOM"))

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


class Writer:
    """A new main subgraph, written node by node over the tensors of an old one.

    Tensors and buffers come along when they are first needed, so nothing unused is left.

    Args:
        graph: The old one; it shares its constants with the new one.

    Attributes:
        nodes: The operators so far.
        tensors: The tensors so far.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [fb.BufferT()]
        self._buffer_at: dict[int, int] = {0: 0}
        self.taken: dict[int, int] = {}
        self._codes = [copy(code) for code in graph.model.operatorCodes]

    def take(self, old: int) -> int:
        """Return the new index of an old tensor, as it is; -1 stands for an input left out."""
        if old < 0:
            return -1
        if old not in self.taken:
            tensor = copy(self.graph.tensors[old])
            tensor.buffer = self._take_buffer(tensor.buffer)
            self.taken[old] = self._append(tensor)
        return self.taken[old]

    def like(self, old: int, dtype: str, quantization: Any, suffix: str) -> int:
        """Return a new tensor of an old one's shape, in another type."""
        tensor = copy(self.graph.tensors[old])
        tensor.type, tensor.buffer, tensor.quantization = TYPES[dtype], 0, quantization
        tensor.name = f"{self.graph.name(old)}{suffix}".encode()
        return self._append(tensor)

    def constant(
        self,
        name: str,
        shape: Sequence[int],
        type_: int,
        buffer: Any,
        quant: Any = None,
    ) -> int:
        """Return a new constant tensor over a buffer, which several may share."""
        tensor = fb.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), list(shape), type_
        tensor.quantization, tensor.hasRank = quant, True
        tensor.buffer = len(self.buffers)
        self.buffers.append(buffer)
        return self._append(tensor)

    def node(
        self,
        code: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        old: Any = None,
        version: int = 1,
    ) -> Any:
        """Append an operator.

        Args:
            code: Its name in the schema; not read where ``old`` keeps its own.
            inputs: New tensors.
            outputs: New tensors.
            old: An operator whose options it has.
            version: At least this version of the operator.
        """
        node = copy(old) if old is not None else fb.OperatorT()
        node.opcodeIndex = self._code(code, version, old)
        node.inputs, node.outputs = list(inputs), list(outputs)
        self.nodes.append(node)
        return node

    def size_of(self, tensor: Any) -> int:
        """Return the bytes that a new tensor's constant takes; 0 for any other."""
        held = self.buffers[tensor.buffer].data
        return 0 if held is None else len(held)

    def name_of(self, node: Any) -> str:
        """Return the name of an operator that was written."""
        return str(_CODE_NAMES[self._codes[node.opcodeIndex].builtinCode])

    def _code(self, code: str, version: int, old: Any) -> int:
        number = getattr(fb.BuiltinOperator, code)
        if old is not None:
            own = self._codes[old.opcodeIndex]
            if own.version >= version:
                return int(old.opcodeIndex)
        for index, known in enumerate(self._codes):
            if (known.builtinCode, known.version) == (number, version):
                return index
        made = fb.OperatorCodeT()
        made.builtinCode, made.version = number, version
        made.deprecatedBuiltinCode = min(number, 127)
        self._codes.append(made)
        return len(self._codes) - 1

    def finish(self, outputs: Sequence[int]) -> bytes:
        """Return the model as a file's bytes.

        Args:
            outputs: New tensors that it puts out, in order.
        """
        old = self.graph.model
        main = copy(self.graph.main)
        main.inputs = [self.take(index) for index in self.graph.inputs]
        main.outputs, main.operators = list(outputs), self.nodes
        others = [self._with_buffers(other) for other in old.subgraphs[1:]]
        main.tensors = self.tensors
        model = copy(old)
        model.subgraphs = [main, *others]
        model.signatureDefs = self._signatures(outputs)
        model.metadata = [self._metadata(entry) for entry in old.metadata or []]
        model.buffers, model.operatorCodes = self.buffers, self._codes
        model.metadataBuffer = None
        # Room for all at once: a builder that runs out doubles, and copies what it has.
        held = (len(b.data) for b in self.buffers if b.data is not None)
        packer = flatbuffers.Builder(sum(held) + (1 << 20))
        packer.Finish(model.Pack(packer), IDENTIFIER)
        return bytes(packer.Output())

    def _append(self, tensor: Any) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _take_buffer(self, old: int) -> int:
        if old not in self._buffer_at:
            self._buffer_at[old] = len(self.buffers)
            self.buffers.append(self.graph.model.buffers[old])
        return self._buffer_at[old]

    def _with_buffers(self, other: Any) -> Any:
        """Return another subgraph (a body of control flow) over the new buffers."""
        made = copy(other)
        made.tensors = [copy(tensor) for tensor in other.tensors]
        for tensor in made.tensors:
            tensor.buffer = self._take_buffer(tensor.buffer)
        return made

    def _metadata(self, entry: Any) -> Any:
        made = copy(entry)
        made.buffer = self._take_buffer(entry.buffer)
        return made

    def _signatures(self, outputs: Sequence[int]) -> list[Any] | None:
        """Return the signatures over the new tensors.

        None where the outputs are not the old model's: then they would name what is not put out.
        """
        if len(outputs) != len(self.graph.outputs):
            return None
        new = dict(zip(self.graph.outputs, outputs, strict=True))
        found = []
        for signature in self.graph.model.signatureDefs or []:
            made = copy(signature)
            if signature.subgraphIndex == 0:
                made.inputs = [_named(m, self.take) for m in signature.inputs or []]
                made.outputs = [_named(m, new.get) for m in signature.outputs or []]
            found.append(made)
        return found


def _named(entry: Any, index_of: Any) -> Any:
    made = copy(entry)
    made.tensorIndex = index_of(entry.tensorIndex)
    return made


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
