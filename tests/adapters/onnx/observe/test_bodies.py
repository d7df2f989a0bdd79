"""Weights in the bodies of If, Loop and Scan and in local functions are tuned like others, static
schemes included."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.run.compiling import compile_model
from octavo.core.values.recipe import Recipe
from tests.adapters.onnx import models

SCHEMES = ["int8-static", "int8-dynamic", "int8-weight-only", "int4-weight-only"]
WIDTH = 32
INTEGERS = {
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QLinearMatMul",
    "QGemm",
}


def info(
    name: str, shape: Sequence[int | str] | None, kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def spared(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """A matrix whose codes no kernel sums beyond 16 bits, as those of CPUs without VNNI do for
    pairs of rows: its largest number in each column stands beside a zero, and the others are less
    than half of it."""
    w = models.weights(seed, w=(rows, columns))["w"]
    w[0] = 2.1 * np.abs(w).max(0)
    w[1] = 0
    return w / np.linalg.norm(w, axis=0).mean()


def held(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    return numpy_helper.from_array(spared(*shape, seed=seed), name)


def branching() -> onnx.ModelProto:
    """Both branches hold a weight of the same name, one reads one of the outer graph too; one holds
    a further If."""
    deep = helper.make_graph(
        [helper.make_node("MatMul", ["h", "deep"], ["d"])],
        "deep",
        [],
        [info("d", ["n", 8])],
        [held("deep", WIDTH, 8, seed=3)],
    )
    shallow = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["d"])],
        "shallow",
        [],
        [info("d", ["n", 8])],
        [held("w", WIDTH, 8, seed=4)],
    )
    then = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Relu", ["a"], ["h"]),
            helper.make_node("Greater", ["s", "one"], ["c"]),
            helper.make_node(
                "If", ["c"], ["y"], "inner", then_branch=deep, else_branch=shallow
            ),
        ],
        "then",
        [],
        [info("y", ["n", 8])],
        [
            held("w", WIDTH, WIDTH, seed=1),
            numpy_helper.from_array(np.float32(1), "one"),
        ],
    )
    other = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("MatMul", ["a", "outer"], ["y"]),
        ],
        "else",
        [],
        [info("y", ["n", 8])],
        [held("w", WIDTH, WIDTH, seed=2)],
    )
    nodes = [
        helper.make_node("Greater", ["s", "zero"], ["go"]),
        helper.make_node(
            "If", ["go"], ["b"], "outer_if", then_branch=then, else_branch=other
        ),
        helper.make_node("MatMul", ["x", "outer"], ["straight"]),
        helper.make_node("Add", ["b", "straight"], ["y_out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "branching",
        [info("x", ["n", WIDTH]), info("s", [])],
        [info("y_out", ["n", 8])],
        [
            held("outer", WIDTH, 8, seed=5),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def branch_feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.normal(size=(4, WIDTH)).astype(np.float32),
            "s": np.array(s, np.float32),
        }
        for s in (-1, 0.5, 2)
    ]


def looping(kind: str) -> onnx.ModelProto:
    """A product; a Loop or Scan whose body reads a weight of its own, the outer weight and an outer
    value; a product."""
    nodes = [
        helper.make_node("MatMul", ["state", "own"], ["p"], "first"),
        helper.make_node("MatMul", ["p", "w"], ["q"], "second"),
        helper.make_node("Add", ["q", "a"], ["sum"], "plus"),
        helper.make_node("Tanh", ["sum"], ["next"], "tanh"),
    ]
    inputs, outputs = [info("state", [2, WIDTH])], [info("next", [2, WIDTH])]
    if kind == "Loop":
        inputs = [
            info("i", [], TensorProto.INT64),
            info("go", [], TensorProto.BOOL),
            *inputs,
        ]
        nodes.append(helper.make_node("Identity", ["go"], ["still"]))
        outputs = [info("still", [], TensorProto.BOOL), *outputs]
    else:
        inputs.append(info("row", [2, WIDTH]))
        nodes[2] = helper.make_node("Sum", ["q", "a", "row"], ["sum"], "plus")
    nodes.append(helper.make_node("MatMul", ["next", "own"], ["seen"], "third"))
    body = helper.make_graph(
        nodes,
        "body",
        inputs,
        [*outputs, info("seen", [2, WIDTH])],
        [held("own", WIDTH, WIDTH, seed=7)],
    )
    tensors = {"w": spared(WIDTH, WIDTH), "w2": spared(WIDTH, 6)}
    around = [helper.make_node("MatMul", ["x", "w"], ["a"], "before")]
    if kind == "Loop":
        tensors |= {"go_on": np.array(True)}
        around.append(
            helper.make_node(
                "Loop", ["times", "go_on", "a"], ["b", "all"], "loop", body=body
            )
        )
    else:
        around.append(
            helper.make_node(
                "Scan",
                ["a", "rows"],
                ["b", "all"],
                "loop",
                body=body,
                num_scan_inputs=1,
            )
        )
    around += [helper.make_node("MatMul", ["b", "w2"], ["y"], "after")]
    given = (
        info("times", [], TensorProto.INT64)
        if kind == "Loop"
        else info("rows", ["t", 2, WIDTH])
    )
    graph = helper.make_graph(
        around,
        "looping",
        [info("x", [2, WIDTH]), given],
        [info("y", [2, 6]), info("all", ["t", 2, WIDTH])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in tensors.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def loop_feeds(kind: str) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    found = []
    for steps in (1, 3, 4):
        x = rng.normal(size=(2, WIDTH)).astype(np.float32)
        rows = rng.normal(size=(steps, 2, WIDTH)).astype(np.float32)
        found.append(
            {"x": x, "times": np.array(steps)}
            if kind == "Loop"
            else {"x": x, "rows": rows}
        )
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))


def float_outputs(
    proto: onnx.ModelProto, feeds: dict[str, np.ndarray]
) -> list[np.ndarray]:
    return list(ort.InferenceSession(proto.SerializeToString()).run(None, feeds))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_products_in_bodies_run_on_integers_and_answer_as_before(
    kind: str, scheme: str, tmp_path: Path
) -> None:
    proto = branching() if kind == "If" else looping(kind)
    feeds = branch_feeds() if kind == "If" else loop_feeds(kind)
    result = octavo.quantize_model(proto, scheme, calibration=feeds)
    weights = [
        op.name
        for op in OnnxAdapter(OnnxConfig()).open(proto).describe().ops
        if op.weight
    ]
    assert (
        len([name for name in weights if "/" in name])
        == {"If": 5, "Loop": 3, "Scan": 3}[kind]
    )
    assert {name for name, line in result.ledger.items() if line.applied.weight} == set(
        weights
    )
    assert {line.realization for line in result.ledger.values()} == {"kernel"}
    optimized = [
        n.op_type
        for n in compile_model(result.model.graph, OnnxConfig(), inspect=True).nodes
    ]
    assert sum(n in INTEGERS for n in optimized) == len(weights)
    assert not {"MatMul", "Gemm"} & set(optimized)
    result.save(tmp_path / "saved")
    again = ort.InferenceSession(str(next((tmp_path / "saved").rglob("model.onnx"))))
    for given in feeds:
        expected = float_outputs(proto, given)
        got = result.model(given)
        for want, have, later in zip(
            expected,
            got if isinstance(got, tuple) else (got,),
            again.run(None, given),
            strict=True,
        ):
            assert cosine(want, have) > (0.85 if "int4" in scheme else 0.98)
            np.testing.assert_allclose(have, later, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_every_value_of_a_body_is_observed_as_it_is_computed(kind: str) -> None:
    """The float body is carried out in NumPy, and each step's values are compared with what the
    sink is given."""
    proto = branching() if kind == "If" else looping(kind)
    feeds = branch_feeds() if kind == "If" else loop_feeds(kind)
    session = OnnxAdapter(OnnxConfig()).open(proto)
    ops = {op.name: op for op in session.describe().ops}
    seen: list[np.ndarray] = []
    if kind == "If":
        watched = ops["outer_if/then_branch/inner/then_branch/MatMul"].inputs[0]
        w = spared(WIDTH, WIDTH, 1)
        expected = [np.maximum(feed["x"] @ w, 0) for feed in feeds if feed["s"] > 0]
    else:
        watched = ops["loop/body/third"].inputs[0]
        w, own = spared(WIDTH, WIDTH), spared(WIDTH, WIDTH, 7)
        expected = []
        for feed in feeds:
            state = outer = feed["x"] @ w
            for step in range(
                int(feed["times"]) if kind == "Loop" else len(feed["rows"])
            ):
                extra = 0 if kind == "Loop" else feed["rows"][step]
                state = np.tanh(state @ own @ w + outer + extra)
                expected.append(state)
    assert session.observe(
        feeds, [watched], lambda name, array: seen.append(array.copy())
    ) == len(feeds)
    assert len(seen) == len(expected)
    for have, want in zip(seen, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-4)


def test_a_model_with_bodies_and_nothing_quantized_answers_as_before() -> None:
    proto = branching()
    session = OnnxAdapter(OnnxConfig()).open(proto)
    plain = session.apply(Recipe(backend="onnx"), {})
    for given in branch_feeds():
        (expected,) = float_outputs(proto, given)
        np.testing.assert_allclose(plain.native(given), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            session.reference().native(given), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("opset", [17, 11])
def test_weights_that_local_functions_read_are_tuned(opset: int) -> None:
    """One function holds a weight itself and calls another; it may be written for another opset
    than the model."""
    inner = helper.make_function(
        "local",
        "Twice",
        ["a", "b"],
        ["c"],
        [
            helper.make_node("MatMul", ["a", "b"], ["m"], "mm"),
            helper.make_node("Add", ["m", "m"], ["c"], "twice"),
        ],
        [helper.make_opsetid("", opset)],
    )
    outer = helper.make_function(
        "local", "Layer", ["a", "b"], ["c"],
        [
            helper.make_node("Constant", [], ["own"], value=held("own", WIDTH, 8, seed=2)),
            helper.make_node("Twice", ["a", "b"], ["t"], "call", domain="local"),
            helper.make_node("MatMul", ["t", "own"], ["c"], "mm"),
        ],
        [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)],
    )  # fmt: skip
    nodes = [helper.make_node("Layer", ["x", "w"], ["y"], "layer", domain="local")]
    proto = models.build(
        nodes,
        {"w": spared(WIDTH, WIDTH)},
        {"x": ["n", WIDTH]},
        {"y": ["n", 8]},
        functions=[inner, outer],
    )
    proto.opset_import.append(helper.make_opsetid("local", 1))
    x = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
    expected = 2 * (x @ spared(WIDTH, WIDTH)) @ spared(WIDTH, 8, 2)
    result = octavo.quantize_model(proto, "int8-static", calibration=[(x,)])
    assert len([line for line in result.ledger.values() if line.applied.weight]) == 2
    assert cosine(expected, result.model(x)) > 0.99


def test_an_old_opset_is_converted_in_bodies_too() -> None:
    """Squeeze took its axes as an attribute before opset 13; the branch is written so."""
    then = helper.make_graph(
        [
            helper.make_node("Squeeze", ["x3"], ["x2"], axes=[0]),
            helper.make_node("MatMul", ["x2", "w"], ["y"]),
        ],
        "then",
        [],
        [info("y", ["n", 8])],
        [held("w", WIDTH, 8)],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["y"])],
        "else",
        [],
        [info("y", ["n", 8])],
        [held("v", WIDTH, 8, seed=1)],
    )
    nodes = [
        helper.make_node("Unsqueeze", ["x"], ["x3"], axes=[0]),
        helper.make_node(
            "If", ["c"], ["out"], "branch", then_branch=then, else_branch=other
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", ["n", WIDTH]), info("c", [], TensorProto.BOOL)],
        [info("out", ["n", 8])],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6
    )
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.normal(size=(4, WIDTH)).astype(np.float32), "c": np.array(c)}
        for c in (True, False)
    ]
    result = octavo.quantize_model(proto, "int8-dynamic", calibration=feeds)
    for given in feeds:
        (expected,) = float_outputs(proto, given)
        assert cosine(expected, result.model(given)) > 0.99


def convolutions(condition: bool | None = None) -> onnx.ModelProto:
    """A convolution, then a branch with batch norm, a residual add over the branch's edge and ReLU;
    a constant condition or an input."""
    tensors = models.weights(
        first=(8, 3, 3, 3), inner=(8, 8, 3, 3), last=(4, 8, 1, 1), other=(8, 8, 1, 1)
    )
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    norm = [
        numpy_helper.from_array(a, n)
        for n, a in (("g", 2 * ones), ("h", zeros), ("m", zeros), ("v", ones))
    ]
    then = helper.make_graph(
        [
            helper.make_node("Conv", ["a", "inner"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c", "g", "h", "m", "v"], ["n"], "norm"),
            helper.make_node("Add", ["n", "a"], ["s"], "residual"),
            helper.make_node("Relu", ["s"], ["r"], "relu"),
        ],
        "then", [], [info("r", None)], [numpy_helper.from_array(tensors["inner"], "inner"), *norm],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Conv", ["a", "other"], ["r"], "conv")],
        "else",
        [],
        [info("r", None)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], "before", pads=[1, 1, 1, 1]),
        helper.make_node(
            "If", ["go"], ["b"], "branch", then_branch=then, else_branch=other
        ),
        helper.make_node("Conv", ["b", "last"], ["y"], "after"),
    ]
    held_outside = [
        numpy_helper.from_array(tensors[n], n) for n in ("first", "last", "other")
    ]
    inputs = [info("x", ["n", 3, 8, 8])]
    if condition is None:
        inputs.append(info("go", [], TensorProto.BOOL))
    else:
        held_outside.append(numpy_helper.from_array(np.array(condition), "go"))
    graph = helper.make_graph(
        nodes, "g", inputs, [info("y", ["n", 4, 8, 8])], held_outside
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("condition", [None, True, False])
def test_convolutions_in_bodies_and_over_their_edges(
    condition: bool | None, form: str
) -> None:
    """With a constant condition the branch that is taken becomes part of the graph, and its ops are
    found all the same."""
    proto = convolutions(condition)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    if condition is None:
        feeds = [{**feed, "go": np.array(i % 2 == 0)} for i, feed in enumerate(feeds)]
    result = octavo.quantize_model(
        proto, "int8-static", calibration=feeds, backend={"kind": "onnx", "form": form}
    )
    assert {
        line.realization for line in result.ledger.values() if line.applied.weight
    } == {"kernel"}
    assert result.coverage.kept == 0
    for feed in feeds:
        (expected,) = float_outputs(proto, feed)
        assert cosine(expected, result.model(feed)) > 0.97
