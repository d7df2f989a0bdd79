"""Models of one op: to try what a kernel does, and to time it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as fb

from octavo.plugin import Batch

from .graph import IDENTIFIER, TYPES, buffer_of

Shape = tuple[int, ...]


class _Sample(NamedTuple):
    """An operator over given shapes.

    Attributes:
        code: The operator.
        options: The class of its options, without ``Options``.
        fields: What they say.
        read: Shapes of its activations.
        held: Shapes of its weight and bias.
        written: Shape of its result.
    """

    code: str
    options: str
    fields: Mapping[str, Any]
    read: Sequence[Shape]
    held: Sequence[Shape]
    written: Shape


_STEPS = {"strideH": 1, "strideW": 1}
_POOL = {"strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}


def _samples(n: int) -> dict[str, _Sample]:
    """Return a sample of each op type whose channels are ``n``."""
    side = 2 * max(3, n // 8)
    image = (1, side, side, n)
    kernel = [(n, 3, 3, n), (n,)]
    rows, square = (2, 4, n), (2, n, n)
    kept = {"keepNumDims": True}
    half = (1, side // 2, side // 2, n)
    wider = (*image[:3], 2 * n)
    found = {
        "conv": _Sample("CONV_2D", "Conv2D", _STEPS, [image], kernel, image),
        "linear": _Sample(
            "FULLY_CONNECTED", "FullyConnected", kept, [rows], [(n, n), (n,)], rows
        ),
        "conv_transpose": _Sample(
            "TRANSPOSE_CONV", "TransposeConv", _STEPS, [image], kernel, image
        ),
        "matmul": _Sample("BATCH_MATMUL", "BatchMatMul", {}, [rows, square], [], rows),
        "concat": _Sample(
            "CONCATENATION", "Concatenation", {"axis": 3}, [image] * 2, [], wider
        ),
        "avg_pool": _Sample("AVERAGE_POOL_2D", "Pool2D", _POOL, [image], [], half),
        "mean": _Sample("MEAN", "Reducer", {}, [image], [(1, 2)], (1, n)),
        "softmax": _Sample("SOFTMAX", "Softmax", {"beta": 1.0}, [rows], [], rows),
        "leaky_relu": _Sample(
            "LEAKY_RELU", "LeakyRelu", {"alpha": 0.1}, [image], [], image
        ),
    }
    for code in ("ADD", "SUB", "MUL"):
        options = code.capitalize()
        found[code.lower()] = _Sample(code, options, {}, [image] * 2, [], image)
    for kind, code in (("sigmoid", "LOGISTIC"), ("tanh", "TANH"), ("gelu", "GELU")):
        found[kind] = _Sample(code, "", {}, [image], [], image)
    found["hard_swish"] = _Sample("HARD_SWISH", "", {}, [image], [], image)
    found["elu"] = _Sample("ELU", "", {}, [image], [], image)
    return found


def sample(kind: str, *, large: bool = False) -> tuple[Any, Batch] | None:
    """Return a model with one op of a type, and a batch for it; always the same.

    Args:
        kind: The op type.
        large: Of the size that models have, to be timed; else of the smallest that shows numbers.

    Returns:
        None where there is none.
    """
    found = _samples(64 if large else 16).get(kind)
    if found is None:
        return None
    rng = np.random.default_rng(0)
    batch = {}
    for place, shape in enumerate(found.read):
        batch[f"x{place}"] = rng.normal(size=shape).astype(np.float32)
    return fb.ModelT.InitFromPackedBuf(_written(found, rng), 0), batch


def _written(found: _Sample, rng: np.random.Generator) -> bytes:
    model, graph = fb.ModelT(), fb.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [fb.BufferT()]
    graph.tensors = []

    def tensor(
        name: str, shape: Shape, dtype: str = "float32", data: Any = None
    ) -> int:
        made = fb.TensorT()
        made.name, made.shape, made.type = name.encode(), list(shape), TYPES[dtype]
        if data is not None:
            made.buffer = len(model.buffers)
            model.buffers.append(buffer_of(data))
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    graph.inputs = [tensor(f"x{at}", s) for at, s in enumerate(found.read)]
    held = []
    for at, shape in enumerate(found.held):
        if found.code == "MEAN":
            held.append(tensor("axes", (2,), "int32", np.array(shape, np.int32)))
            continue
        data = rng.normal(size=shape).astype(np.float32)
        held.append(tensor(f"w{at}", shape, data=data))
    inputs = [*graph.inputs, *held]
    if found.code == "TRANSPOSE_CONV":
        sizes = np.array(found.written, np.int32)
        inputs = [
            tensor("sizes", (4,), "int32", sizes),
            held[0],
            graph.inputs[0],
            held[1],
        ]
    node, code = fb.OperatorT(), fb.OperatorCodeT()
    code.builtinCode = getattr(fb.BuiltinOperator, found.code)
    code.version, code.deprecatedBuiltinCode = 1, min(code.builtinCode, 127)
    if found.options:
        node.builtinOptionsType = getattr(fb.BuiltinOptions, f"{found.options}Options")
        node.builtinOptions = getattr(fb, f"{found.options}OptionsT")()
        vars(node.builtinOptions).update(found.fields)
    node.inputs = inputs
    node.outputs = graph.outputs = [tensor("y", found.written)]
    graph.operators, model.operatorCodes = [node], [code]
    packer = flatbuffers.Builder(1024)
    packer.Finish(model.Pack(packer), IDENTIFIER)
    return bytes(packer.Output())
