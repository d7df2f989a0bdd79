"""Models whose tensors lie in a file beside them, large and small, as torch.onnx.export writes them
by default."""

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
import pytest

import octavo
from octavo.adapters.onnx import OnnxConfig, candidate, octavo_adapters
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.files.writing import write
from octavo.adapters.onnx.prepare.source import read
from octavo.core.values.recipe import Recipe
from tests.adapters.onnx import models


def test_small_and_large_external_tensors_are_read_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    graph = onnx.parser.parse_graph("""outside (float[n, 20] x) => (float[n, 4, 5] y) {
        h = Gemm<transB=1>(x, w, b)
        y = Reshape(h, shape)
    }""")
    w, b = (
        rng.normal(size=(20, 20)).astype(np.float32),
        rng.normal(size=20).astype(np.float32),
    )
    arrays = {"w": w, "b": b, "shape": np.array([-1, 4, 5], np.int64)}
    graph.initializer.extend(
        onnx.numpy_helper.from_array(a, name) for name, a in arrays.items()
    )
    made = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10
    )
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "outside.onnx"
    onnx.save(
        made,
        path,
        save_as_external_data=True,
        location="outside.onnx.data",
        size_threshold=0,
    )
    assert len(
        onnx.load(path, load_external_data=False).graph.initializer[1].external_data
    ), "the small ones lie outside too"

    monkeypatch.chdir(tmp_path)
    adapter = octavo_adapters()[0].build()  # type: ignore[index]
    reference = adapter.open(path).reference()
    x = rng.normal(size=(3, 20)).astype(np.float32)
    expected = (x @ w.T + b).reshape(3, 4, 5)
    np.testing.assert_allclose(reference.run((x,))[0], expected, rtol=1e-5, atol=1e-5)

    (tmp_path / "saved").mkdir()
    reference.save(tmp_path / "saved")
    path.with_suffix(".onnx.data").unlink()
    np.testing.assert_allclose(
        adapter.load(tmp_path / "saved").run((x,))[0], expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static", "int4-weight-only"])
def test_over_the_limit_a_model_is_saved_with_external_data(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "_EXTERNAL_FROM", 1000)
    made = octavo.quantize_model(
        models.transformer_block(), scheme, calibration=models.tokens()
    )
    (tmp_path / "saved").mkdir()
    made.candidate.save(tmp_path / "saved")
    assert sorted(f.name for f in (tmp_path / "saved").iterdir()) == [
        "model.onnx",
        "model.onnx.data",
    ]
    onnx.checker.check_model(str(tmp_path / "saved" / "model.onnx"), full_check=True)
    monkeypatch.chdir(tmp_path)
    loaded = OnnxAdapter(OnnxConfig()).load(tmp_path / "saved")
    assert loaded.recipe == made.candidate.recipe
    for batch in models.tokens():
        np.testing.assert_array_equal(loaded.run(batch)[0], made.model(*batch))


def test_a_file_is_one_message_with_the_fields_that_protobuf_writes(
    tmp_path: Path,
) -> None:
    model = read(models.transformer_block(hidden=64))
    write(model, tmp_path / "model.onnx")
    written, expected = onnx.load(tmp_path / "model.onnx"), ir.to_proto(model)
    assert (tmp_path / "model.onnx").stat().st_size == expected.ByteSize()
    for proto in (written, expected):
        tensors = sorted(proto.graph.initializer, key=lambda t: t.name)
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(tensors)
    assert written == expected


def test_old_opsets_are_converted_without_their_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The converter takes one message of protobuf, which ends at 2 GB."""
    proto = models.build(
        [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm")],
        models.weights(w=(64, 32), b=(32,)),
        {"x": [2, 64]},
        {"y": [2, 32]},
        opset=9,
    )
    seen: list[int] = []
    convert = onnx.version_converter.convert_version
    monkeypatch.setattr(
        onnx.version_converter,
        "convert_version",
        lambda p, v: seen.append(p.ByteSize()) or convert(p, v),
    )
    session = OnnxAdapter(OnnxConfig(threads=1)).open(proto)
    assert seen and seen[0] < 64 * 32
    x = np.ones((2, 64), np.float32)
    (expected,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_allclose(
        session.apply(Recipe(backend="onnx"), {}).native(x), expected, rtol=1e-5
    )
