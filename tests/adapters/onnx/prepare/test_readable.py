"""What ONNX Runtime runs, octavo reads: its session is the judge, and onnx.checker's objections are
notes."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.core.errors import DataError, ModelError, OctavoError
from tests.adapters.onnx.observe.test_bodies import cosine, spared

node = helper.make_node
K, N = 32, 8
Shape = list[int | str] | None


def info(name: str, shape: Shape, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[onnx.NodeProto] | None = None,
    x: Shape = None,
    y: Shape = None,
    opset: int = 17,
    ir: int = 8,
    weight: bool = True,
    **more: object,
) -> onnx.ModelProto:
    """A product and a ReLU, or other nodes, with the weight ``w``."""
    chain = nodes or [
        node("MatMul", ["x", "w"], ["a"], "op"),
        node("Relu", ["a"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(spared(K, N), "w")] if weight else []
    graph = helper.make_graph(
        chain,
        "g",
        [info("x", x or ["n", K])],
        [info("y", y or ["n", N])],
        tensors,
        **more,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir
    )


def changed(
    change: Callable[[onnx.ModelProto], object], **given: object
) -> onnx.ModelProto:
    proto = model(**given)  # type: ignore[arg-type]
    change(proto)
    return proto


def without_shape(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.ClearField("shape")


def without_type(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].ClearField("type")


def listed(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(info("w", [K, N]))


def sparse(proto: onnx.ModelProto) -> None:
    w = spared(K, N)
    places = np.flatnonzero(w)
    values = numpy_helper.from_array(w.ravel()[places], "w")
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(places, "at"), [K, N])
    )


def sparse_rows() -> onnx.AttributeProto:
    w = spared(K, N)
    places = np.argwhere(w)
    values = numpy_helper.from_array(w[w != 0])
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(places), [K, N])
    return helper.make_attribute("sparse_value", tensor)


def sparse_node() -> onnx.NodeProto:
    made = node("Constant", [], ["w"])
    made.attribute.append(sparse_rows())
    return made


PRODUCT = [node("MatMul", ["x", "w"], ["a"], "op"), node("Relu", ["a"], ["y"])]
CASES: dict[str, Callable[[], onnx.ModelProto]] = {
    "output without a shape": lambda: changed(without_shape),
    "output without a type": lambda: changed(without_type),
    "output of another shape": lambda: model(y=[7, 9]),
    "output of another rank": lambda: model(y=[7, 9, 3]),
    "an axis of -1": lambda: model(x=[-1, K]),
    "two axes of -1": lambda: model(x=[-1, -1]),
    "an output axis of -1": lambda: model(y=[-1, N]),
    "an output axis of 0": lambda: model(y=[0, N]),
    "a value's axis of 0": lambda: model(value_info=[info("a", [0, N])]),
    "a value declared twice": lambda: model(
        value_info=[info("a", ["n", N]), info("a", ["n", N])]
    ),
    "a value declared wrongly": lambda: model(value_info=[info("a", [3, 5, 4])]),
    "nodes out of order": lambda: model(PRODUCT[::-1]),
    "IR 3, initializers not listed": lambda: model(opset=8, ir=3),
    "IR 3, initializers listed": lambda: changed(listed, opset=8, ir=3),
    "IR 8, initializers listed": lambda: changed(listed),
    "IR version 0": lambda: model(ir=0),
    "a domain that is not imported": lambda: model(
        [
            node("FusedMatMul", ["x", "w"], ["b"], "fused", domain="com.microsoft"),
            node("MatMul", ["x", "w"], ["a"], "op"),
            node("Add", ["a", "b"], ["y"]),
        ]
    ),
    "the standard domain by its name": lambda: model(
        [
            node("MatMul", ["x", "w"], ["a"], "op", domain="ai.onnx"),
            node("Relu", ["a"], ["y"]),
        ]
    ),
    "an opset imported twice": lambda: changed(
        lambda p: p.opset_import.append(helper.make_opsetid("", 17))
    ),
    "a graph without a name": lambda: changed(lambda p: p.graph.ClearField("name")),
    "an initializer without a name": lambda: changed(
        lambda p: p.graph.initializer.append(
            numpy_helper.from_array(np.ones(3, np.float32), "")
        )
    ),
    "an initializer that nobody reads": lambda: changed(
        lambda p: p.graph.initializer.append(
            numpy_helper.from_array(np.ones((300, 3), np.float32), "unused")
        )
    ),
    "nodes without names": lambda: model(
        [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])]
    ),
    "an output twice": lambda: changed(
        lambda p: p.graph.output.append(p.graph.output[0])
    ),
    "a sparse initializer": lambda: changed(sparse),
    "a sparse constant": lambda: model([sparse_node(), *PRODUCT], weight=False),
    "opset 7": lambda: model(opset=7),
}


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic"])
@pytest.mark.parametrize("case", CASES)
def test_what_the_runtime_runs_is_quantized(
    case: str, scheme: str, tmp_path: Path
) -> None:
    proto = CASES[case]()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    data = [
        {"x": np.random.default_rng(i).normal(size=(i + 2, K)).astype(np.float32)}
        for i in range(3)
    ]
    expected = ort.InferenceSession(str(path), options).run(None, data[-1])
    result = octavo.quantize_model(path, scheme, calibration=data)
    got = result.model(data[-1])
    assert result.coverage.quantized == K * N
    for want, have in zip(
        expected, got if isinstance(got, tuple) else (got,), strict=True
    ):
        assert want.shape == have.shape
        assert cosine(want, have) > 0.99


def test_what_the_checker_objects_to_is_a_note() -> None:
    session = OnnxAdapter(OnnxConfig()).open(changed(without_shape))
    (note,) = session.describe().notes
    assert "onnx.checker objects" in note
    assert "shape" in note
    assert OnnxAdapter(OnnxConfig()).open(model()).describe().notes == ()


def test_one_name_for_two_sizes() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"], "op"),
        node("MatMul", ["z", "w"], ["b"], "op2"),
        node("Concat", ["a", "b"], ["y"], axis=0),
    ]
    proto = model(nodes)
    proto.graph.input.append(info("z", ["n", K]))
    rng = np.random.default_rng(0)
    data = [
        {
            "x": rng.normal(size=(3, K)).astype(np.float32),
            "z": rng.normal(size=(m, K)).astype(np.float32),
        }
        for m in (1, 2, 5)
    ]
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(None, data[-1])
    for scheme in ("int8-static", "int8-dynamic"):
        result = octavo.quantize_model(proto, scheme, calibration=data)
        assert cosine(expected, result.model(data[-1])) > 0.99


def test_an_input_axis_of_0_takes_any_length() -> None:
    """ONNX Runtime itself takes no rows then; exporters write 0 for what they do not know."""
    data = [(np.random.default_rng(0).normal(size=(4, K)).astype(np.float32),)]
    result = octavo.quantize_model(model(x=[0, K]), "int8-dynamic", calibration=data)
    assert (
        cosine(np.maximum(data[0][0] @ spared(K, N), 0), result.model(*data[0])) > 0.99
    )


def test_inputs_with_a_default_become_constants_and_that_is_said() -> None:
    proto = model(
        [node("MatMul", ["x", "w"], ["a"], "op"), node("Add", ["a", "shift"], ["y"])]
    )
    proto.graph.initializer.append(
        numpy_helper.from_array(np.full(N, 7, np.float32), "shift")
    )
    proto.graph.input.append(info("shift", [N]))
    x = np.random.default_rng(0).normal(size=(4, K)).astype(np.float32)
    result = octavo.quantize_model(proto, "int8-dynamic", calibration=[(x,)])
    assert any(
        "taken as constants" in note and "shift" in note for note in result.notes
    )
    assert cosine(x @ spared(K, N) + 7, result.model(x)) > 0.999
    with pytest.raises(DataError, match="no input of this model"):
        result.model({"x": x, "shift": np.zeros(N, np.float32)})


def test_what_the_runtime_does_not_run_is_a_model_error_at_once() -> None:
    for broken in (
        model([node("NoSuchOperator", ["x", "w"], ["y"], "op")]),
        model([node("MatMul", ["x", "w"], ["y"], "op", unknown=3)]),
        model([node("MatMul", ["x", "nothing"], ["y"], "op")]),
        changed(lambda p: p.ClearField("opset_import")),
        changed(lambda p: setattr(p.graph.node[0], "op_type", "")),
    ):
        with pytest.raises(ModelError):
            OnnxAdapter(OnnxConfig()).open(broken)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_an_octavo_error(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(model().SerializeToString())
    for place in rng.integers(0, len(data), 3):
        data[place] = rng.integers(0, 256)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(bytes(data))
    with contextlib.suppress(OctavoError):
        OnnxAdapter(OnnxConfig()).open(path).describe()
