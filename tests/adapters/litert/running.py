"""A session of a model in memory, one op of it quantized, and what stands in the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as fb

from octavo.adapters.litert import LitertConfig
from octavo.adapters.litert.candidate import LitertCandidate
from octavo.adapters.litert.graph import Graph
from octavo.adapters.litert.session import LitertSession
from octavo.plugin import OpScheme, QuantSpec, Recipe, one_op_parameters

A8 = QuantSpec(dtype="int8", symmetric=False)
W8 = QuantSpec(dtype="int8", granularity="channel")
STATIC = OpScheme(mode="static", weight=W8, input=A8, output=A8)
PLAIN = OpScheme(mode="static", input=A8, output=A8)
FIXED = OpScheme(mode="static", input=A8)


def opened(model: bytes) -> LitertSession:
    return LitertSession(Graph.from_bytes(model), LitertConfig())


def quantized(
    session: LitertSession,
    schemes: Mapping[str, OpScheme],
    low: float = -4.0,
    high: float = 4.0,
) -> LitertCandidate:
    """Carry schemes out by rounding to nearest, every activation between two numbers."""
    ops = session.describe().by_name
    parameters = {
        name: one_op_parameters(ops[name], scheme, session.tensor, low, high)
        for name, scheme in schemes.items()
    }
    made = session.apply(Recipe(dict(schemes), backend="litert"), parameters)
    assert isinstance(made, LitertCandidate)
    return made


class Held(NamedTuple):
    """A tensor of a file: its array where it is constant, and what its codes mean."""

    array: np.ndarray | None
    scale: np.ndarray
    zero: np.ndarray
    type: int


class File:
    """What a file says, by the schema classes alone."""

    def __init__(self, model: bytes) -> None:
        self.model = fb.ModelT.InitFromPackedBuf(bytearray(model), 0)
        self.graph = self.model.subgraphs[0]
        names = vars(fb.BuiltinOperator).items()
        self._names = {number: name for name, number in names}

    @property
    def codes(self) -> list[str]:
        """The operators in order."""
        return [self._code(node) for node in self.graph.operators]

    def _code(self, node: Any) -> str:
        code = self.model.operatorCodes[node.opcodeIndex]
        return str(self._names[code.builtinCode])

    def node(self, code: str) -> Any:
        """Return the only operator of a kind."""
        (found,) = [n for n in self.graph.operators if self._code(n) == code]
        return found

    def held(self, index: int) -> Held:
        tensor = self.graph.tensors[index]
        data, quant = self.model.buffers[tensor.buffer].data, tensor.quantization
        array = None
        if data is not None and len(data):
            dtype = {fb.TensorType.INT8: np.int8, fb.TensorType.INT32: np.int32}
            array = np.frombuffer(bytes(data), dtype.get(tensor.type, np.float32))
            array = array.reshape(tensor.shape)
        if quant is None or quant.scale is None:
            return Held(array, np.ones(1), np.zeros(1), tensor.type)
        return Held(
            array, np.array(quant.scale), np.array(quant.zeroPoint), tensor.type
        )
