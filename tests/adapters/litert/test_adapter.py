"""Opening: what is taken, and what is refused with a word of why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import octavo
from octavo.adapters.litert import LitertConfig
from octavo.adapters.litert.adapter import LitertAdapter
from octavo.plugin import DataError, ModelError, OctavoError
from tests.adapters.litert import models
from tests.adapters.litert.builder import Builder
from tests.adapters.litert.running import STATIC, opened, quantized

RNG = np.random.default_rng(0)


def _open(path: Path) -> object:
    return LitertAdapter(LitertConfig()).open(path)


def _random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "identifier"),
        (b"not a model at all", "identifier"),
        (b"\x1c\x00\x00\x00TFL3" + b"\xff" * 40, "read"),
        (None, "No such file"),
    ],
)
def test_what_is_no_model_is_refused(
    content: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        _open(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    whole = models.mlp()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError):
        _open(path)


def test_weights_behind_the_flatbuffer_are_refused(tmp_path: Path) -> None:
    b = Builder()
    y = b.dense(b.input((-1, 4)), _random(4, 4), None, "fc")
    b.model.buffers[1].data, b.model.buffers[1].offset = None, 4096
    path = tmp_path / "model.tflite"
    path.write_bytes(b.bytes(y))
    with pytest.raises(ModelError, match="behind its flatbuffer"):
        _open(path)


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(quantized(opened(models.mlp()), {"first": STATIC}).model)
    with pytest.raises(ModelError, match="quantized already"):
        _open(path)


def test_what_the_runtime_lacks_is_said_at_once(tmp_path: Path) -> None:
    b = Builder()
    path = tmp_path / "model.tflite"
    path.write_bytes(b.bytes(b.op("CUSTOM", [b.input((1, 4))], (1, 4), "y")))
    with pytest.raises(ModelError, match="LiteRT cannot run the model"):
        _open(path)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    b = Builder()
    weight = _random(4, 4)
    weight[1, 2] = np.nan
    path = tmp_path / "model.tflite"
    path.write_bytes(b.bytes(b.dense(b.input((-1, 4)), weight, _random(4), "fc")))
    with pytest.raises(OctavoError, match="fc/w"):
        octavo.quantize_model(path, "int8-static", [_random(2, 4)])


def test_weights_in_float16_are_computed_with_in_float32(tmp_path: Path) -> None:
    b = Builder()
    weight = _random(8, 4).astype(np.float16)
    x = b.input((-1, 4))
    wide = b.op("DEQUANTIZE", [b.const(weight, "half")], (8, 4), "wide")
    y = b.op("FULLY_CONNECTED", [x, wide], (-1, 8), "fc", "FullyConnectedOptions")
    path = tmp_path / "model.tflite"
    path.write_bytes(b.bytes(y))
    session = LitertAdapter(LitertConfig()).open(path)
    (op,) = session.describe().ops
    assert op.weight is not None and not op.out_of_reach
    np.testing.assert_array_equal(session.tensor(op.weight.name), weight)
    given = _random(3, 4)
    (got,) = session.reference().run((given,))
    np.testing.assert_allclose(got, given @ weight.astype(np.float32).T, rtol=1e-5)


def test_a_fixed_batch_is_held_to() -> None:
    b = Builder()
    fixed = opened(b.bytes(b.dense(b.input((2, 4)), _random(4, 4), None, "fc")))
    with pytest.raises(DataError, match=r"\(2, 4\)"):
        fixed.reference().run((_random(3, 4),))


def test_a_model_runs_on_after_a_batch_that_it_cannot_take() -> None:
    candidate = opened(models.cnn()).reference()
    one = _random(1, 13, 13, 3)
    (before,) = candidate.run((one,))
    for rows in (5, 1, 2):
        assert candidate.run((_random(rows, 13, 13, 3),))[0].shape == (rows, 10)
    np.testing.assert_array_equal(candidate.run((one,))[0], before)


def test_threads_are_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.adapters.litert import candidate as module

    seen = []
    plain = module.Interpreter

    def noting(**given: object) -> object:
        seen.append(given["num_threads"])
        return plain(**given)

    monkeypatch.setattr(module, "Interpreter", noting)
    model = models.mlp()
    graph = opened(model).graph
    from octavo.adapters.litert.session import LitertSession

    LitertSession(graph, LitertConfig(threads=2)).reference().run((_random(1, 24),))
    assert seen == [2]
