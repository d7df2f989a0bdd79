"""A .tflite network that reads digits, tuned from end to end."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from ai_edge_litert.interpreter import Interpreter

import octavo
from tests.adapters.litert import models


@lru_cache(1)
def _trained() -> tuple[bytes, np.ndarray, np.ndarray]:
    return models.digits()


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "digits.tflite"
    path.write_bytes(_trained()[0])
    return path


def _accuracy(model: Any) -> float:
    _, images, labels = _trained()
    return float((np.asarray(model(images)).argmax(1) == labels).mean())


def _calibration() -> list[np.ndarray]:
    return [_trained()[1][start : start + 50] for start in range(0, 200, 50)]


def test_what_channels_of_many_sizes_cost_is_mended(network: Path) -> None:
    """One scale for channels a thousand apart loses the small ones; rescaled ones are alike."""
    plain = octavo.quantize_model(network, "int8-static", _calibration())
    even = octavo.quantize_model(network, "int8-static+equalization", _calibration())
    known = octavo.quantize_model(network, "float", _calibration())
    assert _accuracy(known.model) > 0.85
    assert _accuracy(plain.model) < _accuracy(known.model) - 0.05
    assert _accuracy(even.model) > _accuracy(known.model) - 0.01
    lines = [even.ledger[name] for name in ("stem", "depthwise", "pointwise", "head")]
    assert all(line.realization == "kernel" and line.honoured for line in lines)


def test_a_search_from_end_to_end(network: Path, tmp_path: Path) -> None:
    result = octavo.autotune(
        network,
        _accuracy,
        _calibration(),
        progress=False,
        storage=tmp_path / "history.db",
        minimise=["size"],
        max_trials=10,
    )
    assert result.goal_met
    assert {line.realization for line in result.ledger.values()} <= {"kernel", "codes"}
    folder = tmp_path / "tuned"
    result.save(folder)
    (path,) = folder.rglob("*.tflite")
    again = octavo.load(folder)
    assert _accuracy(again) == pytest.approx(_accuracy(result.model))
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    image = _trained()[1][:1]
    interpreter.set_tensor(entry["index"], image)
    interpreter.invoke()
    alone = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(alone, again(image), rtol=1e-4, atol=1e-5)
