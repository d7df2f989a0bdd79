"""Each kernel of ONNX Runtime that octavo calls, at the edges of its shapes: one row, one channel,
odd widths, no rows, all padding.

What a kernel gives is held against the float operator on the *decoded* weight. The bound is
arithmetic, not taste: an input rounded to steps of s moves an output by at most s / 2 times the sum
of the weight's magnitudes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import open_model, plugin_host
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme

HOST = plugin_host(TuningConfig())


@dataclass(frozen=True)
class Edge:
    """An operator at an edge: its attributes, the shapes of its constants, and of the input that it
    is run on.

    Attributes:
        calibrated: Shape of the input that ranges are found on; None takes ``given``.
    """

    name: str
    op: str
    constants: tuple[tuple[int, ...], ...]
    given: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    calibrated: tuple[int, ...] | None = None


def products() -> Iterator[Edge]:
    for rows, features, outputs in (
        (1, 1, 1),
        (1, 32, 1),
        (3, 33, 5),
        (1, 17, 7),
        (5, 64, 1),
        (2, 257, 9),
        (1, 4096, 3),
        (129, 8, 2),
    ):
        yield Edge(
            f"matmul {rows}x{features}x{outputs}",
            "MatMul",
            ((features, outputs),),
            (rows, features),
        )
    yield Edge("matmul of no rows", "MatMul", ((32, 4),), (0, 32), calibrated=(3, 32))
    yield Edge("gemm of one output", "Gemm", ((1, 48), (1,)), (2, 48), {"transB": 1})
    yield Edge(
        "gemm of no rows",
        "Gemm",
        ((3, 48), (3,)),
        (0, 48),
        {"transB": 1},
        calibrated=(2, 48),
    )


def convolutions() -> Iterator[Edge]:
    one = ((1, 1, 1, 1), (1,))
    yield Edge("conv of one channel", "Conv", one, (1, 1, 1, 1))
    yield Edge(
        "conv whose taps lie in the padding",
        "Conv",
        ((16, 8, 2, 2), (16,)),
        (2, 8, 1, 1),
        {"pads": [1, 1, 1, 1], "dilations": [1, 2]},
    )
    yield Edge(
        "conv deeper padded than its image",
        "Conv",
        ((3, 2, 2, 5), (3,)),
        (1, 2, 3, 2),
        {"pads": [1, 4, 1, 4]},
    )
    yield Edge(
        "depthwise conv in the padding",
        "Conv",
        ((5, 1, 3, 3), (5,)),
        (2, 5, 1, 2),
        {"group": 5, "pads": [2, 2, 2, 2]},
    )
    yield Edge(
        "depthwise conv with two outputs a channel",
        "Conv",
        ((6, 1, 3, 3), (6,)),
        (1, 3, 4, 5),
        {"group": 3, "pads": [1, 1, 1, 1]},
    )
    yield Edge(
        "grouped conv, odd groups",
        "Conv",
        ((9, 5, 3, 1), (9,)),
        (1, 15, 4, 3),
        {"group": 3, "strides": [2, 1]},
    )
    yield Edge(
        "conv of one axis",
        "Conv",
        ((3, 2, 4), (3,)),
        (2, 2, 7),
        {"pads": [0, 3], "dilations": [2]},
    )
    yield Edge(
        "conv of three axes",
        "Conv",
        ((3, 2, 2, 1, 3), (3,)),
        (1, 2, 3, 2, 4),
        {"pads": [1, 0, 1, 0, 0, 2]},
    )
    yield Edge(
        "conv of no images",
        "Conv",
        ((4, 3, 3, 3), (4,)),
        (0, 3, 5, 5),
        calibrated=(2, 3, 5, 5),
    )


EDGES = [*products(), *convolutions()]


def model_of(edge: Edge) -> onnx.ModelProto:
    random = np.random.default_rng(len(edge.name))
    held = [random.normal(size=shape).astype(np.float32) for shape in edge.constants]
    names = [f"c{i}" for i in range(len(held))]
    node = helper.make_node(edge.op, ["x", *names], ["y"], "op", **edge.attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *edge.given[1:]])
    y = helper.make_tensor_value_info(
        "y", TensorProto.FLOAT, ["n", *(f"y{i}" for i in range(1, len(edge.given)))]
    )
    tensors = [
        numpy_helper.from_array(array, name)
        for name, array in zip(names, held, strict=True)
    ]
    graph = helper.make_graph([node], "edge", [x], [y], tensors)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )


def run_float(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def with_weight(model: onnx.ModelProto, weight: np.ndarray) -> onnx.ModelProto:
    """Return the model with another first constant."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(weight.astype(np.float32), "c0")
    )
    return changed


def bound(
    scheme: OpScheme,
    model: onnx.ModelProto,
    weight: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
) -> float:
    """Return how far rounded inputs and a rounded result may move an output."""
    largest = float(np.abs(x).max(initial=0.0))
    span = float(max(x.max(initial=0), 0) - min(x.min(initial=0), 0))
    output_step = (float(max(y.max(initial=0), 0) - min(y.min(initial=0), 0))) / 255
    if scheme.input is None:
        step = 0.0
    else:
        # Codes of both signs reach 127; half of MatMulNBits' blocks are rounded likewise.
        step = span / 255 if not scheme.input.symmetric else 2 * largest / 254
    ones = with_weight(model, np.abs(weight))
    for bias in ones.graph.initializer[1:]:
        bias.CopyFrom(
            numpy_helper.from_array(np.zeros(tuple(bias.dims), np.float32), bias.name)
        )
    reach = float(run_float(ones, np.ones_like(x)).max(initial=0.0))
    rounding = 1e-5 * (1 + float(np.abs(y).max(initial=0.0)))
    return (
        0.51 * step * reach
        + (output_step if scheme.mode == "static" else 0.0)
        + rounding
    )


@pytest.mark.parametrize("edge", EDGES, ids=lambda e: e.name)
def test_every_offer_is_right_at_the_edges(edge: Edge) -> None:
    model, random = model_of(edge), np.random.default_rng(7)
    calibration = random.normal(size=edge.calibrated or edge.given).astype(np.float32)
    x = calibration if edge.calibrated is None else np.zeros(edge.given, np.float32)
    opened = open_model(model, HOST, example=(calibration,))
    space = build_space(opened)
    realizer = Realizer(opened, space, HOST)
    realizer.calibrate([(calibration,)])
    (unit,) = space.units
    # A cast computes in half precision and is no integer kernel.
    schemes = [s for s in unit.choices if not s.is_float and s.mode != "cast"]
    assert schemes
    for scheme in schemes:
        recipe = Recipe({unit.name: scheme}, backend="onnx")
        candidate = realizer.candidate(recipe)
        weight = realizer.parameters(recipe)[unit.name].weight
        assert weight is not None
        decoded = np.asarray(weight.dequantize()).reshape(edge.constants[0])
        want = run_float(with_weight(model, decoded), x)
        for _ in range(2):  # in the second run memory holds what the first left in it
            _junk()
            (got,) = candidate.run((x,))
            assert got.shape == want.shape, scheme
            difference = float(np.abs(got - want).max(initial=0.0))
            assert difference <= bound(scheme, model, decoded, x, want), (
                f"{scheme}: {difference:.4g}"
            )


def _junk() -> None:
    """Leave large numbers in memory that is given back."""
    blocks = [
        np.full(size, 1e30, np.float32)
        for size in (16, 256, 4096, 65536)
        for _ in range(8)
    ]
    del blocks


def tables() -> Iterator[Edge]:
    for rows, width, ids in ((1, 128, 1), (5, 128, 3), (3, 160, 0), (257, 32, 2)):
        yield Edge(
            f"table of {rows}x{width}, {ids} rows", "Gather", ((rows, width),), (ids,)
        )


@pytest.mark.parametrize("edge", tables(), ids=lambda e: e.name)
def test_tables_give_their_decoded_rows(edge: Edge) -> None:
    random = np.random.default_rng(0)
    (shape,) = edge.constants
    table = random.normal(size=shape).astype(np.float32)
    node = helper.make_node("Gather", ["c0", "x"], ["y"], "op")
    ids = helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", shape[1]])
    graph = helper.make_graph(
        [node], "table", [ids], [y], [numpy_helper.from_array(table, "c0")]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    chosen = random.integers(0, shape[0], edge.given)
    opened = open_model(model, HOST)
    space = build_space(opened)
    realizer = Realizer(opened, space, HOST)
    (unit,) = space.units
    schemes = [s for s in unit.choices if s.mode == "weight_only"]
    assert schemes
    for scheme in schemes:
        recipe = Recipe({unit.name: scheme}, backend="onnx")
        weight = realizer.parameters(recipe)[unit.name].weight
        assert weight is not None
        _junk()
        (got,) = realizer.candidate(recipe).run((chosen,))
        want = np.asarray(weight.dequantize())[chosen]
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6, err_msg=str(scheme))


@pytest.mark.parametrize(
    ("steps", "batch", "features", "hidden"),
    [(1, 1, 1, 1), (1, 3, 17, 5), (4, 1, 33, 3), (2, 2, 1, 9)],
)
def test_recurrent_layers_at_the_edges(
    steps: int, batch: int, features: int, hidden: int
) -> None:
    random = np.random.default_rng(steps)
    shapes = ((1, 4 * hidden, features), (1, 4 * hidden, hidden), (1, 8 * hidden))
    held = [(random.normal(size=s) / 2).astype(np.float32) for s in shapes]
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "b"], ["y"], "op", hidden_size=hidden
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", "n", features])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", 1, "n", hidden])
    tensors = [
        numpy_helper.from_array(a, n)
        for a, n in zip(held, ("w", "r", "b"), strict=True)
    ]
    graph = helper.make_graph([node], "cell", [x], [y], tensors)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    given = random.normal(size=(steps, batch, features)).astype(np.float32)
    want = run_float(model, given)
    opened = open_model(model, HOST)
    space = build_space(opened)
    realizer = Realizer(opened, space, HOST)
    (unit,) = space.units
    schemes = [s for s in unit.choices if s.mode == "dynamic"]
    assert schemes
    for scheme in schemes:
        _junk()
        (got,) = realizer.candidate(Recipe({unit.name: scheme}, backend="onnx")).run(
            (given,)
        )
        # Gates are in (-1, 1) and have slopes of 1 at most: 8-bit inputs, states and weights move
        # them by a few hundredths.
        assert np.abs(got - want).max() < 0.05, scheme
