"""Bad model files: a typed error that names the thing at fault (rows 15 to 25 of the table of
faults)."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.prepare.opset import NEWEST
from octavo.adapters.onnx.prepare.source import read
from octavo.core.errors import DeviceError, ModelError, UnsafeFile
from octavo.core.values.recipe import Recipe
from tests.adapters.onnx import models


def external(folder: Path, location: str = "weights.bin") -> Path:
    """A model whose weights lie in an external file."""
    proto = models.build(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        models.weights(w=(64, 32)),
        {"x": ["n", 64]},
        {"y": ["n", 32]},
    )
    path = folder / "model.onnx"
    onnx.save_model(
        proto,
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    if location != "weights.bin":
        held = onnx.load(path, load_external_data=False)
        next(
            e for e in held.graph.initializer[0].external_data if e.key == "location"
        ).value = location
        path.write_bytes(held.SerializeToString())
    return path


def test_external_data_is_read_in_place(tmp_path: Path) -> None:
    session = OnnxAdapter(OnnxConfig()).open(external(tmp_path))
    x = np.ones((2, 64), np.float32)
    (expected,) = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x})
    np.testing.assert_array_equal(session.reference().native(x), expected)


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin"]
)
def test_external_data_outside_the_folder_is_refused(
    tmp_path: Path, location: str
) -> None:
    (tmp_path / "inner").mkdir()
    path = external(tmp_path / "inner", location)
    with pytest.raises(UnsafeFile, match="relative paths"):
        read(path)


def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (tmp_path / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(UnsafeFile, match="symbolic link"):
        read(path)
    (tmp_path / "weights.bin").unlink()
    os.link(tmp_path / "elsewhere.bin", tmp_path / "weights.bin")
    with pytest.raises(UnsafeFile, match="hard link"):
        read(path)


def test_a_short_external_file_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-100])
    with pytest.raises(ModelError, match=r"too short: tensor 'w'"):
        read(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="missing"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01garbage",
        b"PK\x03\x04zip",
        models.convolutional().SerializeToString()[:500],
    ],
)
def test_files_that_are_no_models_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad model \u00e9.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="bad model"):
        read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.onnx"):
        read(tmp_path / "nothing.onnx")


def test_duplicate_initializers_are_refused() -> None:
    proto = models.convolutional()
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(ModelError, match="twice"):
        read(proto)


def test_two_payloads_are_refused() -> None:
    proto = models.convolutional()
    tensor = proto.graph.initializer[0]
    tensor.float_data.extend([0.0] * int(np.prod(tensor.dims)))
    with pytest.raises(ModelError, match="two payloads"):
        read(proto)


@pytest.mark.parametrize("opset", [5, 7, 9, 11, 13, 17, 21, 25, 27, 28])
def test_any_opset_is_brought_to_one_that_the_runtime_executes(opset: int) -> None:
    proto = models.build(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
            helper.make_node("Relu", ["c"], ["y"], "relu"),
        ],
        models.weights(w=(4, 3, 3, 3)),
        {"x": [1, 3, 8, 8]},
        {"y": [1, 4, 6, 6]},
        opset=opset,
    )
    model = read(proto)
    assert 13 <= model.opset_imports[""] <= NEWEST
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    expected = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0]
    session = OnnxAdapter(OnnxConfig()).open(proto)
    np.testing.assert_allclose(
        session.apply(Recipe(backend="onnx"), {}).native(x), expected, atol=1e-5
    )


def test_an_opset_whose_ops_are_unknown_to_the_runtime_is_refused() -> None:
    node = helper.make_node("CumProd", ["x", "axis"], ["y"], "newcomer")
    proto = models.build(
        [node], {"axis": np.array(0, np.int64)}, {"x": [3]}, {"y": [3]}, opset=26
    )
    with pytest.raises(ModelError, match=r"newcomer.*CumProd"):
        read(proto)


def test_a_provider_that_is_not_there_is_named() -> None:
    adapter = OnnxAdapter(
        OnnxConfig(providers=("NoSuchProvider", "CPUExecutionProvider"))
    )
    with pytest.raises(
        DeviceError,
        match=r"'NoSuchProvider' is not there; this ONNX Runtime has .*CPUExecutionProvider",
    ):
        adapter.open(models.convolutional()).capability()


def test_names_and_metadata_travel(tmp_path: Path) -> None:
    proto = models.transformer_block()
    proto.producer_name, proto.doc_string, proto.graph.doc_string = (
        "someone",
        "of a model",
        "of a graph",
    )
    proto.metadata_props.add(key="author", value="A. Nonymous")
    made = octavo.quantize_model(proto, "int8-dynamic", calibration=models.tokens())
    made.candidate.save(tmp_path)
    saved = onnx.load(tmp_path / "model.onnx")
    assert (saved.producer_name, saved.doc_string, saved.graph.doc_string) == (
        "someone",
        "of a model",
        "of a graph",
    )
    kept = {m.key: m.value for m in saved.metadata_props}
    assert kept["author"] == "A. Nonymous"
    assert {"octavo.recipe", "octavo.ledger"} < kept.keys()
    for side in ("input", "output"):
        assert [v.name for v in getattr(saved.graph, side)] == [
            v.name for v in getattr(proto.graph, side)
        ]


def test_local_functions_are_inlined() -> None:
    proto = models.build([], models.weights(w=(4, 4)), {"x": ["n", 4]}, {"y": ["n", 4]})
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "local",
        "Dense",
        ["a", "b"],
        ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["c"], "inner")],
        opsets,
    )
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node.append(
        helper.make_node("Dense", ["x", "w"], ["y"], "outer", domain="local")
    )
    session = OnnxAdapter(OnnxConfig()).open(proto)
    assert [op.type for op in session.describe().ops] == ["linear"]


def test_bodies_of_control_flow_are_described_and_run() -> None:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["t"], "product")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n", 8])],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["n", 8])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"], "before"),
        helper.make_node("ReduceSum", ["h"], ["s"], "sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], "test"),
        helper.make_node(
            "If", ["c"], ["y"], "branch", then_branch=inner, else_branch=other
        ),
    ]
    tensors = models.weights(w=(8, 8), v=(8, 8)) | {"zero": np.float32(0)}
    proto = models.build(nodes, tensors, {"x": ["n", 8]}, {"y": ["n", 8]})
    session = OnnxAdapter(OnnxConfig()).open(proto)
    view = session.describe()
    assert [op.name for op in view.ops if op.weight] == [
        "before",
        "branch/then_branch/product",
    ]
    for sign in (1, -1):
        x = sign * np.ones((2, 8), np.float32)
        np.testing.assert_allclose(
            session.apply(Recipe(), {}).native(x),
            session.reference().native(x),
            rtol=1e-5,
        )


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_keeps_its_inputs_and_outputs(dtype: int) -> None:
    w = numpy_helper.from_array(models.weights(w=(16, 8))["w"], "w")
    half = helper.make_tensor("w", dtype, [16, 8], numpy_helper.to_array(w).ravel())
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    proto = models.build(
        nodes,
        {},
        {"x": ["n", 16]},
        {"y": ["n", 8]},
        input_type=dtype,
        output_type=dtype,
    )
    proto.graph.initializer.append(half)
    session = OnnxAdapter(OnnxConfig()).open(proto)
    (op,) = session.describe().ops
    assert session.tensor("w").dtype == np.float32
    candidate = session.apply(Recipe(), {})
    kind = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}[dtype]
    assert (
        candidate.native.session.get_inputs()[0].type
        == f"tensor({kind})"
        == candidate.native.session.get_outputs()[0].type
    )
    assert op.type == "linear"
