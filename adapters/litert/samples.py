"""Models of one op: to try what a kernel does, and to time it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as fb

from octavo.plugin import Batch

from .graph import TYPES, buffer_of

Shape = tuple[int, ...]


class _Sample(NamedTuple):
    """An operator over given shapes.

    Attributes:
        code: The operator.
        read: Shapes of its activations.
        written: Shape of its result.
        held: Shapes of its weight and bias; or sizes and axes as they are.
        options: The class of its options, without ``Options``; empty for none.
        fields: What they say.
    """

    code: str
    read: Sequence[Shape]
    written: Shape
    held: Sequence[Shape | np.ndarray] = ()
    options: str = ""
    fields: dict[str, Any] = {}  # noqa: RUF012 - it is read only


_STEPS = {"strideH": 1, "strideW": 1}
_POOL = {"strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}
_SINGLE = {
    "add": "ADD", "sub": "SUB", "mul": "MUL", "sigmoid": "LOGISTIC", "tanh": "TANH",
    "gelu": "GELU", "hard_swish": "HARD_SWISH", "elu": "ELU",
}  # fmt: skip
"""Op type -> operator, of those that compute each number by itself."""


def _samples(n: int) -> dict[str, _Sample]:
    """Return a sample of each op type whose channels are ``n``."""
    side = 2 * max(3, n // 8)
    image, half = (1, side, side, n), (1, side // 2, side // 2, n)
    kernel = [(n, 3, 3, n), (n,)]
    rows, square = (2, 4, n), (2, n, n)
    whole = np.array(image, np.int32)
    axes = np.array([1, 2], np.int32)
    kept = {"keepNumDims": True}
    both = (1, side, side, 2 * n)
    pair, matrix = [image, image], [(n, n), (n,)]
    # The rows of the tables below: operator, what it reads, writes and holds, its options.
    deep = ("TRANSPOSE_CONV", [image], image, [whole, *kernel], "TransposeConv", _STEPS)
    found = {
        "conv": ("CONV_2D", [image], image, kernel, "Conv2D", _STEPS),
        "conv_transpose": deep,
        "linear": ("FULLY_CONNECTED", [rows], rows, matrix, "FullyConnected", kept),
        "embedding": ("GATHER", [(n,)], (n, n), [(8 * n, n)], "Gather"),
        "matmul": ("BATCH_MATMUL", [rows, square], rows, (), "BatchMatMul"),
        "concat": ("CONCATENATION", pair, both, (), "Concatenation", {"axis": 3}),
        "avg_pool": ("AVERAGE_POOL_2D", [image], half, (), "Pool2D", _POOL),
        "mean": ("MEAN", [image], (1, n), [axes], "Reducer"),
        "softmax": ("SOFTMAX", [rows], rows, (), "Softmax", {"beta": 1.0}),
        "leaky_relu": ("LEAKY_RELU", [image], image, (), "LeakyRelu", {"alpha": 0.1}),
    }
    made = {kind: _Sample(*fields) for kind, fields in found.items()}  # type: ignore[arg-type]
    for kind, code in _SINGLE.items():
        inputs = pair if kind in ("add", "sub", "mul") else [image]
        options = code.capitalize() if len(inputs) > 1 else ""
        made[kind] = _Sample(code, inputs, image, (), options)
    return made


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
    batch: dict[str, np.ndarray] = {}
    for place, shape in enumerate(found.read):
        batch[f"x{place}"] = rng.normal(size=shape).astype(np.float32)
    if kind == "embedding":
        batch = {"x0": np.arange(batch["x0"].size, dtype=np.int32)}
    return _model(found, batch, rng), batch


def _model(
    found: _Sample, batch: dict[str, np.ndarray], rng: np.random.Generator
) -> Any:
    model, graph = fb.ModelT(), fb.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [fb.BufferT()]
    graph.tensors = []

    def tensor(name: str, like: np.ndarray, *, is_held: bool = False) -> int:
        made = fb.TensorT()
        made.name, made.shape = name.encode(), list(like.shape)
        made.type, made.hasRank = TYPES[str(like.dtype)], True
        if is_held:
            made.buffer = len(model.buffers)
            model.buffers.append(buffer_of(like))
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    graph.inputs = [tensor(name, array) for name, array in batch.items()]
    held = []
    for place, given in enumerate(found.held):
        if not isinstance(given, np.ndarray):
            given = rng.normal(size=given).astype(np.float32)
        held.append(tensor(f"w{place}", given, is_held=True))
    # These read their activation behind what they hold.
    first = {"TRANSPOSE_CONV": 2, "GATHER": 1}.get(found.code, 0)
    node, code = fb.OperatorT(), fb.OperatorCodeT()
    node.inputs = [*held[:first], *graph.inputs, *held[first:]]
    node.outputs = graph.outputs = [tensor("y", np.empty(found.written, np.float32))]
    if found.options:
        node.builtinOptionsType = getattr(fb.BuiltinOptions, f"{found.options}Options")
        node.builtinOptions = getattr(fb, f"{found.options}OptionsT")()
        vars(node.builtinOptions).update(found.fields)
    code.version, code.builtinCode = 1, getattr(fb.BuiltinOperator, found.code)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    graph.operators, model.operatorCodes = [node], [code]
    return model
