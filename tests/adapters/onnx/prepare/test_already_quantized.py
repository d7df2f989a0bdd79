"""A file that is quantized already, wholly or partly, is recognised; what it holds is left as it
is, and the rest is tuned."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.cli import app
from octavo.core.errors import SchemeError
from tests.adapters.onnx import models
from tests.adapters.onnx.observe.test_bodies import cosine, spared

node = helper.make_node
K, N = 32, 8


def codes(w: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 codes with one scale for each place on ``axis``, by hand."""
    rest = tuple(i for i in range(w.ndim) if i != axis)
    scale = np.abs(w).max(rest) / 127
    shape = [-1 if i == axis else 1 for i in range(w.ndim)]
    return np.rint(w / scale.reshape(shape)).astype(np.int8), scale.astype(np.float32)


def pairs() -> onnx.ModelProto:
    """Two convolutions, a product and a residual add: the first convolution and the add are in QDQ,
    the rest is float."""
    tensors = models.weights(w1=(4, 4, 3, 3), w2=(4, 4, 3, 3), v=(4, N))
    c, s = codes(tensors.pop("w1"), 0)
    tensors |= {
        "c": c,
        "s": s,
        "z": np.zeros(4, np.int8),
        "xs": np.float32(0.03),
        "xz": np.uint8(128),
    }
    around = ["xs", "xz"]
    nodes = [
        node("QuantizeLinear", ["x", *around], ["xq"]),
        node("DequantizeLinear", ["xq", *around], ["xd"]),
        node("DequantizeLinear", ["c", "s", "z"], ["wd"], axis=0),
        node("Conv", ["xd", "wd"], ["a"], "done", pads=[1, 1, 1, 1]),
        node("QuantizeLinear", ["a", *around], ["aq"]),
        node("DequantizeLinear", ["aq", *around], ["ad"]),
        node("Add", ["ad", "xd"], ["r"], "sum"),
        node("QuantizeLinear", ["r", *around], ["rq"]),
        node("DequantizeLinear", ["rq", *around], ["rd"]),
        node("Conv", ["rd", "w2"], ["b"], "open", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["b"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "v"], ["y"], "last"),
    ]
    return models.build(nodes, tensors, {"x": ["n", 4, 8, 8]}, {"y": ["n", N]})


def integers() -> onnx.ModelProto:
    """MatMulInteger over DynamicQuantizeLinear, as ONNX Runtime's quantizer writes it, and a float
    product after it."""
    c, s = codes(spared(K, K), 1)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        node("MatMulInteger", ["q", "c", "qz"], ["i"], "done"),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["qs", "s"], ["scale"]),
        node("Mul", ["f", "scale"], ["a"]),
        node("MatMul", ["a", "v"], ["y"], "open"),
    ]
    return models.build(
        nodes, {"c": c, "s": s, "v": spared(K, N)}, {"x": ["n", K]}, {"y": ["n", N]}
    )


def packed() -> onnx.ModelProto:
    """com.microsoft's MatMulNBits, and a float product after it."""
    rng = np.random.default_rng(0)
    tensors = {
        "c": rng.integers(0, 256, (K, 1, 16), dtype=np.uint8),
        "s": rng.uniform(0.01, 0.05, K).astype(np.float32),
        "v": spared(K, N),
    }
    nodes = [
        node(
            "MatMulNBits",
            ["x", "c", "s"],
            ["a"],
            "done",
            domain="com.microsoft",
            K=K,
            N=K,
            bits=4,
            block_size=K,
        ),
        node("MatMul", ["a", "v"], ["y"], "open"),
    ]
    proto = models.build(nodes, tensors, {"x": ["n", K]}, {"y": ["n", N]})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], str, set[str]]] = {
    "QDQ": (pairs, "1 of 2 Conv in int8 by QDQ", {"open", "last"}),
    "integers": (integers, "1 of 2 MatMul in int8 by MatMulInteger", {"open"}),
    "packed": (packed, "1 of 2 MatMul in int4 by MatMulNBits", {"open"}),
}


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_float_is_tuned_and_the_rest_left(case: str, scheme: str) -> None:
    build, said, tuned = CASES[case]
    proto = build()
    shape = [
        4,
        *(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:]),
    ]
    data = [
        np.random.default_rng(i).normal(size=shape).astype(np.float32) for i in range(4)
    ]
    result = octavo.quantize_model(proto, scheme, calibration=[(x,) for x in data])
    assert any(said in note and "can still be tuned" in note for note in result.notes)
    assert {
        name for name, line in result.ledger.items() if line.applied.weight
    } == tuned
    made = {n.name: n for n in result.model.model.graph.node}
    tensors = {
        t.name: numpy_helper.to_array(t) for t in result.model.model.graph.initializer
    }
    before = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for old in proto.graph.node:
        if old.name in ("done", "sum"):
            assert made[old.name].op_type == old.op_type
            assert list(made[old.name].input) == list(old.input)
    for name in ("c", "s"):
        np.testing.assert_array_equal(tensors[name], before[name])
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(
        None, {"x": data[-1]}
    )
    assert cosine(expected, result.model(data[-1])) > 0.99


def test_an_op_in_pairs_says_that_it_is_quantized() -> None:
    ledger = OnnxAdapter(OnnxConfig()).open(pairs()).reference().ledger
    assert ledger["done"].reason == ledger["sum"].reason == "already quantized (QDQ)"
    assert ledger["open"].reason == ""


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic", "int4-weight-only"])
def test_what_octavo_made_is_recognised_when_it_comes_back(
    scheme: str, tmp_path: object
) -> None:
    tensors = {"w": spared(K, K), "v": spared(K, N)}
    nodes = [
        node("MatMul", ["x", "w"], ["a"], "first"),
        node("MatMul", ["a", "v"], ["y"], "second"),
    ]
    proto = models.build(nodes, tensors, {"x": ["n", K]}, {"y": ["n", N]})
    x = np.random.default_rng(0).normal(size=(4, K)).astype(np.float32)
    made = octavo.quantize_model(proto, scheme, calibration=[(x,)]).model.model
    with pytest.raises(
        SchemeError,
        match=r"already quantized: .*2 MatMul.* no operator with a float weight is left to tune",
    ):
        octavo.quantize_model(made, "int8-dynamic", calibration=[(x,)])


def test_a_search_over_what_is_quantized_says_so() -> None:
    c, s = codes(spared(K, N), 1)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        node("MatMulInteger", ["q", "c", "qz"], ["i"], "done"),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["qs", "s"], ["scale"]),
        node("Mul", ["f", "scale"], ["y"], "scaled"),
    ]
    proto = models.build(nodes, {"c": c, "s": s}, {"x": ["n", K]}, {"y": ["n", N]})
    x = np.random.default_rng(0).normal(size=(4, K)).astype(np.float32)
    result = octavo.autotune(
        proto, lambda model: 1.0, calibration=[(x,)], higher_is_better=True
    )
    assert "already quantized: 1 of 1 MatMul" in " ".join(result.remarks)
    assert "nothing to quantize" in result.reason


def test_inspect_says_what_a_file_is(tmp_path: object) -> None:
    path = f"{tmp_path}/pairs.onnx"
    onnx.save(pairs(), path)
    shown = " ".join(CliRunner().invoke(app, ["inspect", path]).output.split())
    assert "already quantized: 1 of 2 Conv in int8 by QDQ" in shown


def test_weights_that_the_model_itself_quantizes_at_run_time_are_told() -> None:
    """Training-aware exporters store float weights with a QuantizeLinear after them."""
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        node("QuantizeLinear", ["w", "s", "z"], ["wq"], axis=1),
        node("DequantizeLinear", ["wq", "s", "z"], ["wd"], axis=1),
        node("MatMul", ["xd", "wd"], ["a"], "done"),
        node("MatMul", ["a", "v"], ["y"], "open"),
    ]
    tensors = {
        "w": spared(K, K),
        "v": spared(K, N),
        "xs": np.float32(0.03),
        "xz": np.uint8(128),
    }
    tensors |= {"s": np.full(K, 0.02, np.float32), "z": np.zeros(K, np.int8)}
    proto = models.build(nodes, tensors, {"x": ["n", K]}, {"y": ["n", N]})
    x = np.random.default_rng(0).normal(size=(4, K)).astype(np.float32)
    result = octavo.quantize_model(proto, "int8-dynamic", calibration=[(x,)])
    rows = {row.weight: row for row in result.coverage.rows}
    assert "QuantizeLinear" in rows["w"].reason
    assert not rows["v"].is_float
    assert result.ledger["done"].reason == "already quantized (QDQ)"


def test_a_model_in_half_precision_says_so() -> None:
    proto = models.build(
        [node("MatMul", ["x", "w"], ["y"], "op")],
        {},
        {"x": ["n", K]},
        {"y": ["n", N]},
        input_type=TensorProto.FLOAT16,
        output_type=TensorProto.FLOAT16,
    )
    proto.graph.initializer.append(
        numpy_helper.from_array(spared(K, N).astype(np.float16), "w")
    )
    (note,) = OnnxAdapter(OnnxConfig()).open(proto).describe().notes
    assert "half precision" in note
