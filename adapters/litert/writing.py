"""A .tflite model written anew over the tensors of an old one."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as fb

from .graph import CODE_NAMES, IDENTIFIER, TYPES, Graph


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
        return str(CODE_NAMES[self._codes[node.opcodeIndex].builtinCode])

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
