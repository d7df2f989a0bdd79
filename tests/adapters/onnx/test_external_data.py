"""Models whose tensors lie in a file beside them, large and small, as torch.onnx.export writes them by default."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from octavo.adapters.onnx import octavo_adapters


def test_small_and_large_external_tensors_are_read_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    graph = onnx.parser.parse_graph("""outside (float[n, 20] x) => (float[n, 4, 5] y) {
        h = Gemm<transB=1>(x, w, b)
        y = Reshape(h, shape)
    }""")
    w, b = rng.normal(size=(20, 20)).astype(np.float32), rng.normal(size=20).astype(np.float32)
    arrays = {"w": w, "b": b, "shape": np.array([-1, 4, 5], np.int64)}
    graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "outside.onnx"
    onnx.save(made, path, save_as_external_data=True, location="outside.onnx.data", size_threshold=0)
    assert len(onnx.load(path, load_external_data=False).graph.initializer[1].external_data), "the small ones lie outside too"

    monkeypatch.chdir(tmp_path)
    adapter = octavo_adapters()[0].build()  # type: ignore[index]
    reference = adapter.open(path).reference()
    x = rng.normal(size=(3, 20)).astype(np.float32)
    expected = (x @ w.T + b).reshape(3, 4, 5)
    np.testing.assert_allclose(reference.run((x,))[0], expected, rtol=1e-5, atol=1e-5)

    (tmp_path / "saved").mkdir()
    reference.save(tmp_path / "saved")
    path.with_suffix(".onnx.data").unlink()
    np.testing.assert_allclose(adapter.load(tmp_path / "saved").run((x,))[0], expected, rtol=1e-5, atol=1e-5)
