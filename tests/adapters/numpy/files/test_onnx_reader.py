"""Reading ONNX: bad files are refused with the thing at fault; patterns become what the tuning
space sees."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from octavo.adapters.numpy import NumpyConfig
from octavo.adapters.numpy.adapter import NumpyAdapter
from octavo.adapters.numpy.files.onnx_reader import from_onnx
from octavo.adapters.numpy.kernels.fallback import REASON
from octavo.core.errors import ModelError, UnsafeFile

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])


def model(
    *nodes: onnx.NodeProto, held: tuple[onnx.TensorProto, ...] = (), opset: int = 21
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [X], [Y], list(held))
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    )


def weight(name: str = "w") -> onnx.TensorProto:
    return numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(4, 4), name)


def test_garbage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"this is no model")
    for source in (path, b"", b"\x00\x01garbage"):
        with pytest.raises(ModelError):
            from_onnx(source)
    with pytest.raises(ModelError, match="no file"):
        NumpyAdapter(NumpyConfig()).open(tmp_path / "missing.onnx")


def test_two_initializers_of_one_name_are_refused() -> None:
    with pytest.raises(ModelError, match="w"):
        from_onnx(
            model(
                helper.make_node("MatMul", ["x", "w"], ["y"]), held=(weight(), weight())
            )
        )


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin"])
def test_external_data_outside_the_folder_is_refused(
    tmp_path: Path, location: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    tensor = TensorProto(
        name="w",
        data_type=TensorProto.FLOAT,
        dims=[4, 4],
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(
        model(
            helper.make_node("MatMul", ["x", "w"], ["y"]), held=(tensor,)
        ).SerializeToString()
    )
    with pytest.raises((UnsafeFile, ModelError)):
        from_onnx(folder / "m.onnx")


def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(60))
    tensor = TensorProto(
        name="w",
        data_type=TensorProto.FLOAT,
        dims=[4, 4],
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", "w.bin"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "m.onnx").write_bytes(
        model(
            helper.make_node("MatMul", ["x", "w"], ["y"]), held=(tensor,)
        ).SerializeToString()
    )
    with pytest.raises(ModelError, match="too short"):
        from_onnx(tmp_path / "m.onnx")


def test_external_data_is_read(tmp_path: Path) -> None:
    proto = model(helper.make_node("MatMul", ["x", "w"], ["y"]), held=(weight(),))
    onnx.save(
        proto,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    got = (
        NumpyAdapter(NumpyConfig())
        .open(tmp_path / "m.onnx")
        .reference()
        .run((np.eye(4, dtype=np.float32),))[0]
    )
    np.testing.assert_array_equal(got, np.arange(16, dtype=np.float32).reshape(4, 4))


def test_local_functions_are_inlined() -> None:
    function = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 21)],
    )
    proto = model(helper.make_node("Twice", ["x"], ["y"], domain="mine"))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.functions.append(function)
    assert [n.op for n in from_onnx(proto).nodes] == ["Add"]


def test_an_operator_of_a_foreign_domain_is_named() -> None:
    proto = model(helper.make_node("Twice", ["x"], ["y"], domain="mine"))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(ModelError, match=r"mine\.Twice"):
        from_onnx(proto)


def test_matmul_and_add_are_a_linear_layer_and_names_are_kept() -> None:
    bias = numpy_helper.from_array(np.ones(4, np.float32), "b")
    proto = model(
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Add", ["b", "h"], ["z"], name="add"),
        helper.make_node("Relu", ["z"], ["y"], name="act"),
        held=(weight(), bias),
    )
    (op,) = NumpyAdapter(NumpyConfig()).open(proto).describe().ops
    assert (op.name, op.type, op.inputs, op.outputs, op.bias) == (
        "fc",
        "linear",
        ("x",),
        ("y",),
        "b",
    )
    assert op.attributes["activation"] == "Relu"
    assert op.macs == 16


def test_what_runs_on_the_reference_evaluator_is_in_the_ledger() -> None:
    """Hardmax of an old operator set has no kernel here."""
    node = helper.make_node("NegativeLogLikelihoodLoss", ["x", "t"], ["y"], name="loss")
    labels = numpy_helper.from_array(np.zeros(4, np.int64), "t")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [labels],
    )
    session = NumpyAdapter(NumpyConfig()).open(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
        )
    )
    candidate = session.reference()
    assert candidate.ledger["loss"].reason == REASON
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    np.testing.assert_allclose(candidate.run((x,))[0], -x[:, 0].mean(), rtol=1e-6)
