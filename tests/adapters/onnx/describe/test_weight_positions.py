"""A weight is tuned wherever it stands: on either side, transposed, stacked, behind other nodes, in
any kind of constant.

Expected values are ONNX Runtime's for the float model. The weights are such that no kernel
saturates (``spared``).
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.core.errors import SchemeError
from octavo.core.opening.config import TuningConfig
from tests.adapters.onnx import models
from tests.adapters.onnx.observe.test_bodies import cosine, spared

node = helper.make_node
K, N = 32, 8


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def columns(*shape: int, axis: int = -1, seed: int = 0) -> np.ndarray:
    """A weight whose columns along ``axis`` are summed over the axis before the last, as
    :func:`spared` has them."""
    stacked = np.stack(
        [spared(*shape[-2:], seed=seed + i) for i in range(int(np.prod(shape[:-2])))]
    )
    return stacked.reshape(shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    x: Sequence[int | str],
    opset: int = 17,
) -> onnx.ModelProto:
    proto = models.build(nodes, tensors, {"x": x}, {}, opset=opset)
    proto.graph.output.append(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    )
    return proto


def gemm(
    bias: tuple[int, ...] = (N,), **attributes: object
) -> Callable[[], tuple[onnx.ModelProto, tuple[int, ...]]]:
    def build() -> tuple[onnx.ModelProto, tuple[int, ...]]:
        w = spared(K, N)
        tensors = {"w": np.ascontiguousarray(w.T) if attributes.get("transB") else w}
        tensors["b"] = rng(1).normal(size=bias).astype(np.float32)
        shape = (K, 4) if attributes.get("transA") else (4, K)
        return model(
            [node("Gemm", ["x", "w", "b"], ["y"], "op", **attributes)], tensors, shape
        ), shape

    return build


def einsum(
    equation: str, weight: tuple[int, ...], x: tuple[int, ...], left: bool = False
) -> Callable[[], object]:
    def build() -> tuple[onnx.ModelProto, tuple[int, ...]]:
        # The first letter that both share is summed over: outliers stand there.
        first, second = equation.split("->")[0].split(",")
        own = first if left else second
        other = second if left else first
        result = equation.partition("->")[2]
        summed = [i for i, c in enumerate(own) if c in other and c not in result]
        # A stack of matrices, as they stand.
        if any(c in other and c in result for c in own):
            return model(
                [node("Einsum", ["x", "w"], ["y"], "op", equation=equation)],
                {"w": columns(*weight)},
                x,
            ), x
        rest = [i for i in range(len(own)) if i not in summed]
        rows, width = (
            int(np.prod([weight[i] for i in summed])),
            int(np.prod([weight[i] for i in rest])),
        )
        shape = [weight[i] for i in (*summed, *rest)]
        array = np.ascontiguousarray(
            spared(rows, width).reshape(shape).transpose(np.argsort([*summed, *rest]))
        )
        inputs = ["w", "x"] if left else ["x", "w"]
        return model(
            [node("Einsum", inputs, ["y"], "op", equation=equation)], {"w": array}, x
        ), x

    return build


def plain(
    nodes: Sequence[onnx.NodeProto], x: tuple[int, ...], **tensors: np.ndarray
) -> Callable[[], object]:
    return lambda: (model(nodes, tensors, x), x)


def left(*shape: int) -> np.ndarray:
    """A constant for the left side: its rows are the columns of a spared matrix."""
    return np.ascontiguousarray(spared(shape[-1], shape[-2]).T).reshape(shape)


PRODUCTS = {
    "gemm": gemm(),
    "gemm transA": gemm(transA=1),
    "gemm transA transB": gemm(transA=1, transB=1),
    "gemm alpha beta": gemm(alpha=0.5, beta=3.0, transB=1),
    "gemm bias of one": gemm(bias=(1,), beta=2.0),
    "gemm bias of rows": gemm(bias=(4, 1), beta=2.0),
    "gemm bias matrix": gemm(bias=(4, N)),
    "gemm constant on the left": plain(
        [node("Gemm", ["w", "x"], ["y"], "op", transA=1)], (K, 5), w=spared(K, N)
    ),
    "left": plain([node("MatMul", ["w", "x"], ["y"], "op")], (K, 5), w=left(N, K)),
    "left under rank 3": plain(
        [node("MatMul", ["w", "x"], ["y"], "op")], (3, K, 5), w=left(N, K)
    ),
    "left of rank 3": plain(
        [node("MatMul", ["w", "x"], ["y"], "op")], (3, K, 5), w=left(1, N, K)
    ),
    "left times a vector": plain(
        [node("MatMul", ["w", "x"], ["y"], "op")], (K,), w=left(N, K)
    ),
    "rank 4": plain(
        [node("MatMul", ["x", "w"], ["y"], "op")], (2, 6, 3, K), w=columns(1, 1, K, N)
    ),
    "stacked": plain(
        [node("MatMul", ["x", "w"], ["y"], "op")], (2, 6, 3, K), w=columns(6, K, N)
    ),
    "einsum": einsum("bsd,dh->bsh", (K, N), (2, 3, K)),
    "einsum of heads": einsum("bsd,dhk->bhsk", (K, 2, 4), (2, 3, K)),
    "einsum to one": einsum("bshk,hkd->bsd", (4, K // 4, N), (2, 3, 4, K // 4)),
    "einsum of rows": einsum("bsd,hd->bsh", (N, K), (2, 3, K)),
    "einsum with the constant first": einsum(
        "hd,bds->bhs", (N, K), (2, K, 3), left=True
    ),
    "einsum of stacked matrices": einsum("bhd,hdk->bhk", (6, K, N), (2, 6, K)),
    "einsum of any rank": einsum("...d,dh->...h", (K, N), (2, 3, K)),
    "einsum without a result": einsum("bd,dh", (K, N), (4, K)),
    "identity": plain(
        [node("Identity", ["v"], ["w"]), node("MatMul", ["x", "w"], ["y"], "op")],
        (4, K),
        v=spared(K, N),
    ),
    "transpose": plain(
        [
            node("Transpose", ["v"], ["w"], perm=[1, 0]),
            node("MatMul", ["x", "w"], ["y"], "op"),
        ],
        (4, K),
        v=spared(K, N).T.copy(),
    ),
    "cast": plain(
        [
            node("Cast", ["v"], ["w"], to=TensorProto.FLOAT),
            node("MatMul", ["x", "w"], ["y"], "op"),
        ],
        (4, K),
        v=spared(K, N).astype(np.float16),
    ),
    "reshape": plain(
        [node("Reshape", ["v", "s"], ["w"]), node("MatMul", ["x", "w"], ["y"], "op")],
        (4, K),
        v=spared(K, N).reshape(2, -1),
        s=np.array([K, N]),
    ),
    "unsqueeze": plain(
        [node("Unsqueeze", ["v", "s"], ["w"]), node("MatMul", ["x", "w"], ["y"], "op")],
        (2, 4, K),
        v=spared(K, N),
        s=np.array([0]),
    ),
    "constant node": plain(
        [
            node("Constant", [], ["w"], value=numpy_helper.from_array(spared(K, N))),
            node("MatMul", ["x", "w"], ["y"], "op"),
        ],
        (4, K),
    ),
    "constant of floats": plain(
        [
            node("Constant", [], ["v"], value_floats=spared(K, N).ravel().tolist()),
            node("Reshape", ["v", "s"], ["w"]),
            node("MatMul", ["x", "w"], ["y"], "op"),
        ],
        (4, K),
        s=np.array([K, N]),
    ),
}


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic", "int8-weight-only"])
@pytest.mark.parametrize("case", PRODUCTS)
def test_products_are_tuned_and_answer_as_before(case: str, scheme: str) -> None:
    proto, shape = PRODUCTS[case]()
    data = [{"x": rng(i).normal(size=shape).astype(np.float32)} for i in range(3)]
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(None, data[-1])
    plain = (
        OnnxAdapter(OnnxConfig()).open(proto).apply(octavo.Recipe(backend="onnx"), {})
    )
    np.testing.assert_allclose(plain.native(data[-1]), expected, rtol=1e-4, atol=1e-4)
    if "stacked" in case and scheme == "int8-weight-only":
        with pytest.raises(SchemeError):
            octavo.quantize_model(proto, scheme, calibration=data)
        return
    result = octavo.quantize_model(proto, scheme, calibration=data)
    assert result.coverage.quantized == K * N * (6 if "stacked" in case else 1)
    assert {row.weight for row in result.coverage.rows if row.is_float} <= {"b"}
    assert {
        line.realization for line in result.ledger.values() if line.applied.weight
    } == {"kernel"}
    assert result.model(data[-1]).shape == expected.shape
    assert cosine(expected, result.model(data[-1])) > 0.995


def test_a_constant_on_the_left_stays_there_where_it_stays_float() -> None:
    nodes = [
        node("MatMul", ["w", "x"], ["a"], "left"),
        node("MatMul", ["a", "v"], ["y"], "right"),
    ]
    proto = model(nodes, {"w": left(N, K), "v": spared(K, N)}, (3, K, K))
    x = rng().normal(size=(3, K, K)).astype(np.float32)
    result = octavo.quantize_model(
        proto,
        {
            "rules": [
                {"types": "linear", "mode": "dynamic"},
                {"ops": "left", "keep": "float"},
            ]
        },
        [{"x": x}],
    )
    (kept,) = [n for n in result.model.model.graph.node if n.name == "left"]
    assert (kept.op_type, list(kept.input)) == ("MatMul", ["w", "x"])
    assert "Transpose" not in {n.op_type for n in result.model.model.graph.node}


def test_one_weight_in_two_layouts_and_under_three_nodes() -> None:
    """Each layout decides by itself; what is float of a tied weight is told, and the float model
    does not grow."""
    nodes = [
        node("Gemm", ["x", "w"], ["a"], "first", transB=1),
        node("Relu", ["a"], ["r"]),
        node("Gemm", ["r", "w"], ["b"], "second"),
        node("Gemm", ["b", "w"], ["c"], "third", transB=1),
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["b", "t"], ["d"], "fourth"),
        node("Add", ["c", "d"], ["y"]),
    ]
    proto = model(nodes, {"w": spared(48, K)}, (4, K))
    data = [{"x": rng(i).normal(size=(4, K)).astype(np.float32)} for i in range(3)]
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(None, data[-1])
    for scheme in ("int8-static", "int8-dynamic"):
        result = octavo.quantize_model(proto, scheme, calibration=data)
        assert {n for n, line in result.ledger.items() if line.applied.weight} == {
            "first",
            "second",
            "third",
            "fourth",
        }
        assert cosine(expected, result.model(data[-1])) > 0.99


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("scalar", [False, True])
def test_tables_are_looked_up_along_any_axis(axis: int, scalar: bool) -> None:
    shape = [32, 32, 32]
    shape[axis] = 40
    table = models.weights(w=tuple(shape))["w"]
    proto = models.build(
        [node("Gather", ["t", "ids"], ["y"], "table", axis=axis)],
        {"t": table},
        {"ids": [] if scalar else ["a", 2]},
        {},
        input_type=TensorProto.INT64,
    )
    proto.graph.output.append(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    )
    ids = np.array(7) if scalar else np.array([[1, 39], [0, -1]])
    expected = np.take(table, ids, axis)
    plain = (
        OnnxAdapter(OnnxConfig()).open(proto).apply(octavo.Recipe(backend="onnx"), {})
    )
    np.testing.assert_array_equal(plain.native(ids), expected)
    result = octavo.quantize_model(proto, "int8-weight-only", calibration=[(ids,)])
    assert result.coverage.kept == 0
    assert cosine(expected, result.model(ids)) > 0.999


@pytest.mark.parametrize("kind", ["GRU", "RNN", "LSTM"])
def test_recurrent_weights_can_be_stored_in_codes(kind: str) -> None:
    gates = {"GRU": 3, "RNN": 1, "LSTM": 4}[kind]
    tensors = models.weights(
        w=(2, gates * 8, 16), r=(2, gates * 8, 8), b=(2, gates * 16)
    )
    cell = node(
        kind,
        ["x", "w", "r", "b"],
        ["y"],
        "cell",
        hidden_size=8,
        direction="bidirectional",
    )
    proto = model([cell], tensors, ("s", 2, 16))
    x = rng().normal(size=(5, 2, 16)).astype(np.float32)
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    rules = [{"types": kind.lower(), "mode": "weight_only"}]
    result = octavo.quantize_model(
        proto, TuningConfig.read({"simulated": True, "rules": rules}), [{"x": x}]
    )
    assert {row.weight for row in result.coverage.rows if row.is_float} == {"b"}
    assert result.ledger["cell"].realization == "simulated"
    assert cosine(expected, result.model(x)) > 0.999
    if kind != "LSTM":
        with pytest.raises(SchemeError, match="for no op of this model"):
            octavo.quantize_model(proto, "int8-dynamic", [{"x": x}])


def test_double_precision_stays_and_says_so() -> None:
    nodes = [
        node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
        node("MatMul", ["d", "w"], ["a"], "wide"),
        node("Cast", ["a"], ["f"], to=TensorProto.FLOAT),
        node("MatMul", ["f", "v"], ["y"], "open"),
    ]
    proto = model(
        nodes, {"w": spared(K, K).astype(np.float64), "v": spared(K, N)}, (4, K)
    )
    x = rng().normal(size=(4, K)).astype(np.float32)
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    for scheme in ("int8-static", "int8-dynamic", "int4-weight-only"):
        result = octavo.quantize_model(proto, scheme, calibration=[(x,)])
        assert "double precision" in result.ledger["wide"].reason
        assert not result.ledger["open"].applied.is_float
        assert cosine(expected, result.model(x)) > 0.98


def test_an_input_of_unknown_rank() -> None:
    proto = model(
        [node("MatMul", ["x", "w"], ["y"], "op")], {"w": spared(K, N)}, (4, K)
    )
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    x = rng().normal(size=(4, K)).astype(np.float32)
    for scheme in ("int8-static", "int8-dynamic"):
        result = octavo.quantize_model(proto, scheme, calibration=[(x,)])
        assert cosine(x @ spared(K, N), result.model(x)) > 0.995


def test_what_has_no_constant_or_no_kernel_says_so() -> None:
    nodes = [
        node("Conv", ["x", "k"], ["a"], "free", kernel_shape=[3, 3]),
        node("Conv", ["a", "w"], ["b"], "fixed"),
        node("Einsum", ["b", "e"], ["c"], "diagonal", equation="nchw,cw->nch"),
        node("Add", ["c", "p"], ["y"], "position"),
    ]
    tensors = models.weights(w=(4, 4, 3, 3), e=(4, 4), p=(4, 4))
    proto = models.build(
        nodes, tensors, {"x": [1, 3, 8, 8], "k": [4, 3, 3, 3]}, {"y": [1, 4, 4]}
    )
    feeds = {
        "x": rng().normal(size=(1, 3, 8, 8)).astype(np.float32),
        "k": rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32),
    }
    result = octavo.quantize_model(proto, "int8-static", calibration=[feeds])
    assert result.ledger["free"].reason == "its weight is computed at run time"
    rows = {row.weight: row for row in result.coverage.rows}
    assert not rows["w"].is_float
    assert "no product" in rows["e"].reason
    assert "Add" in rows["p"].reason
