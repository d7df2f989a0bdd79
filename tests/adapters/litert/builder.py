"""Small .tflite models, written with the runtime's own schema classes and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as fb

_TYPES = {
    "float32": fb.TensorType.FLOAT32,
    "float16": fb.TensorType.FLOAT16,
    "int32": fb.TensorType.INT32,
    "int64": fb.TensorType.INT64,
    "int8": fb.TensorType.INT8,
    "bool": fb.TensorType.BOOL,
}
SAME, VALID = fb.Padding.SAME, fb.Padding.VALID
RELU, RELU6 = fb.ActivationFunctionType.RELU, fb.ActivationFunctionType.RELU6


class Builder:
    """One subgraph; tensors are named by their indices."""

    def __init__(self) -> None:
        self.graph = fb.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs = []
        self.graph.name = b"main"
        self.model = fb.ModelT()
        self.model.version = 3
        self.model.buffers = [fb.BufferT()]
        self.model.operatorCodes = []
        self.model.subgraphs = [self.graph]

    def tensor(
        self, shape: Sequence[int], name: str, dtype: str = "float32", buffer: int = 0
    ) -> int:
        made = fb.TensorT()
        made.shape = [abs(n) for n in shape]
        if min(shape, default=1) < 0:  # -1: a length of 1 that may be any
            made.shapeSignature = list(shape)
        made.type, made.buffer, made.name = _TYPES[dtype], buffer, name.encode()
        made.hasRank = True
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def input(
        self, shape: Sequence[int], name: str = "x", dtype: str = "float32"
    ) -> int:
        index = self.tensor(shape, name, dtype)
        self.graph.inputs.append(index)
        return index

    def const(self, array: Any, name: str = "") -> int:
        held = fb.BufferT()
        array = np.ascontiguousarray(array)
        held.data = np.frombuffer(array.tobytes(), np.uint8)
        self.model.buffers.append(held)
        named = name or f"const_{len(self.model.buffers)}"
        place = len(self.model.buffers) - 1
        return self.tensor(array.shape, named, str(array.dtype), place)

    def op(
        self,
        code: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        name: str,
        options: Any = None,
        dtype: str = "float32",
        version: int = 1,
        **fields: Any,
    ) -> int:
        """Add an op of one output; ``options`` is the name of its options' class."""
        node = fb.OperatorT()
        node.opcodeIndex = self._code(getattr(fb.BuiltinOperator, code), version)
        node.inputs = list(inputs)
        if options:
            node.builtinOptionsType = getattr(fb.BuiltinOptions, options)
            node.builtinOptions = getattr(fb, f"{options}T")()
            for field, value in fields.items():
                setattr(node.builtinOptions, field, value)
        node.outputs = [self.tensor(shape, name, dtype)]
        self.graph.operators.append(node)
        return int(node.outputs[0])

    def _code(self, builtin: int, version: int) -> int:
        for index, known in enumerate(self.model.operatorCodes):
            if (known.builtinCode, known.version) == (builtin, version):
                return index
        code = fb.OperatorCodeT()
        code.builtinCode, code.version = builtin, version
        code.deprecatedBuiltinCode = min(builtin, 127)
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def bytes(self, *outputs: int) -> bytes:
        self.graph.outputs = list(outputs)
        packer = flatbuffers.Builder(1024)
        packer.Finish(self.model.Pack(packer), b"TFL3")
        return bytes(packer.Output())

    # Layers.

    def conv(
        self,
        x: int,
        weight: Any,
        bias: Any,
        name: str,
        act: int = 0,
        stride: int = 1,
        padding: int = SAME,
    ) -> int:
        """Weight as (outputs, height, width, inputs / groups)."""
        shape = self._strided(x, weight.shape, stride, padding, len(weight))
        return self.op(
            "CONV_2D",
            [x, self.const(weight, f"{name}/w"), self.const(bias, f"{name}/b")],
            shape,
            name,
            "Conv2DOptions",
            padding=padding,
            strideH=stride,
            strideW=stride,
            fusedActivationFunction=act,
        )

    def depthwise(
        self,
        x: int,
        weight: Any,
        bias: Any,
        name: str,
        act: int = 0,
        stride: int = 1,
        padding: int = SAME,
    ) -> int:
        """Weight as (1, height, width, channels x multiplier)."""
        channels = self.graph.tensors[x].shape[-1]
        shape = self._strided(x, weight.shape, stride, padding, weight.shape[-1])
        return self.op(
            "DEPTHWISE_CONV_2D",
            [x, self.const(weight, f"{name}/w"), self.const(bias, f"{name}/b")],
            shape,
            name,
            "DepthwiseConv2DOptions",
            padding=padding,
            strideH=stride,
            strideW=stride,
            depthMultiplier=weight.shape[-1] // channels,
            fusedActivationFunction=act,
        )

    def _strided(
        self, x: int, kernel: Sequence[int], stride: int, padding: int, out: int
    ) -> list[int]:
        n, h, w, _ = self._signature(x)
        if padding == SAME:
            sizes = [-(-h // stride), -(-w // stride)]
        else:
            sizes = [
                -(-(h - kernel[1] + 1) // stride),
                -(-(w - kernel[2] + 1) // stride),
            ]
        return [n, *sizes, out]

    def _signature(self, x: int) -> list[int]:
        tensor = self.graph.tensors[x]
        return list(tensor.shapeSignature or tensor.shape)

    def dense(self, x: int, weight: Any, bias: Any, name: str, act: int = 0) -> int:
        """Weight as (outputs, inputs)."""
        shape = [*self._signature(x)[:-1], len(weight)]
        held = [x, self.const(weight, f"{name}/w")]
        if bias is not None:
            held.append(self.const(bias, f"{name}/b"))
        return self.op(
            "FULLY_CONNECTED",
            held,
            shape,
            name,
            "FullyConnectedOptions",
            keepNumDims=len(shape) > 2,
            fusedActivationFunction=act,
        )

    def add(self, a: int, b: int, name: str, act: int = 0) -> int:
        return self.op(
            "ADD",
            [a, b],
            self._signature(a),
            name,
            "AddOptions",
            fusedActivationFunction=act,
        )

    def pool(self, kind: str, x: int, size: int, name: str) -> int:
        """``kind``: AVERAGE or MAX."""
        n, h, w, c = self._signature(x)
        return self.op(
            f"{kind}_POOL_2D",
            [x],
            [n, h // size, w // size, c],
            name,
            "Pool2DOptions",
            padding=VALID,
            strideH=size,
            strideW=size,
            filterHeight=size,
            filterWidth=size,
        )

    def mean(self, x: int, name: str) -> int:
        n, _, _, c = self._signature(x)
        axes = self.const(np.array([1, 2], np.int32))
        return self.op("MEAN", [x, axes], [n, c], name, "ReducerOptions")

    def reshape(self, x: int, shape: Sequence[int], name: str) -> int:
        wanted = self.const(np.array(shape, np.int32))
        return self.op("RESHAPE", [x, wanted], shape, name, "ReshapeOptions")

    def transpose(self, x: int, order: Sequence[int], name: str) -> int:
        given = self._signature(x)
        axes = self.const(np.array(order, np.int32))
        shape = [given[axis] for axis in order]
        return self.op("TRANSPOSE", [x, axes], shape, name, "TransposeOptions")

    def softmax(self, x: int, name: str) -> int:
        return self.op(
            "SOFTMAX", [x], self._signature(x), name, "SoftmaxOptions", beta=1.0
        )
