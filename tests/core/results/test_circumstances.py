"""A result says on which machine and with which data it was found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import octavo
from octavo.core.results.circumstances import source_of
from octavo.core.results.saving import environment
from tests import tiny


def batches():
    return iter(tiny.calibration())


def right(model: object, indices: np.ndarray) -> np.ndarray:
    x, y = tiny.digits()
    return (model(x[1200:][indices]).argmax(1) == y[1200:][indices]).astype(float)


def test_a_result_holds_its_machine_and_its_data(tmp_path: Path) -> None:
    result = octavo.autotune(
        tiny.chain(),
        octavo.SampleScore(right, 400),
        batches,
        storage=tmp_path / "h.db",
        minimise=["size"],
        host=tiny.host(),
        max_trials=1,
        holdout=0.25,
        tolerance=0.1,
    )
    folder = result.save(tmp_path / "out")
    saved = json.loads((folder / "octavo.json").read_text())
    assert saved["machine"]["logical_cores"] >= 1
    assert saved["machine"]["processor"]
    data = saved["data"]
    digest = data["calibration"].pop("digest")
    assert len(digest) == 16
    inputs = {"x": {"shape": [64, 64], "dtype": "float32"}}
    assert data == {
        "calibration": {
            "source": "batches()",
            "batches": 4,
            "samples": 256,
            "inputs": inputs,
        },
        "timing": {"samples": 64, "inputs": inputs},
        "scoring": {"samples": 300},
        "holdout": {"share": 0.25, "samples": 100},
    }


def test_what_data_was_given_as() -> None:
    assert source_of("calibration.npz") == "calibration.npz"
    assert source_of(Path("a") / "b.npz") == str(Path("a") / "b.npz")
    assert source_of(batches) == "batches()"
    assert source_of([1]) == "list"
    assert source_of(None) == ""


def test_versions_are_of_what_is_imported() -> None:
    found = environment()
    assert found["numpy"] == np.__version__
    assert ("scikit-learn" in found) == ("sklearn" in sys.modules)
    assert ("transformers" in found) == ("transformers" in sys.modules)
