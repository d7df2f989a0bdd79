"""Further goals and budgets start from one file: its sensitivities, and what recipes scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.sensitivity.output_distance import OutputDistance
from tests import tiny


def tune(folder: Path, score: Any = tiny.nearness, **settings: Any) -> octavo.Result:
    return octavo.autotune(
        tiny.chain(),
        score,
        tiny.calibration(),
        sensitivities=folder / "scores",
        minimise="size",
        max_trials=30,
        host=tiny.host(),
        **settings,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a first run kept what it found."""
    made = tmp_path_factory.mktemp("further")
    first = tune(made, tolerance=0.0008)
    assert len(first.trials) > 2
    return made


def test_a_further_goal_takes_two_evaluations_and_no_probe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> float:
        raise AssertionError("probed again")

    monkeypatch.setattr(OutputDistance, "of", never)
    for tolerance in (0.0005, 0.0012):
        result = tune(folder, tolerance=tolerance)
        assert len(result.trials) <= 2
        assert result.goal_met
        assert not any("probed again" in remark for remark in result.remarks)


def test_a_further_budget_takes_one(folder: Path) -> None:
    result = tune(folder, tolerance=1e-9, budgets={"bits": 20.0})
    assert len(result.trials) <= 2
    assert not result.best.over


def test_another_score_function_is_not_taken_for_the_first(folder: Path) -> None:
    kept = json.loads((folder / "scores.tiny.json").read_text())
    assert kept["measured"]["trials"]
    tune(folder, tiny.accuracy, tolerance=0.9)
    after = json.loads((folder / "scores.tiny.json").read_text())
    assert after["scores"].keys() >= kept["scores"].keys()
    assert after["measured"]["baseline"] != kept["measured"]["baseline"]
    (folder / "scores.tiny.json").write_text(json.dumps(kept))


def test_files_of_earlier_versions_hold_no_trials(folder: Path) -> None:
    path = folder / "scores.tiny.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in kept.items() if k != "measured"}))
    assert tune(folder, tolerance=0.0008).goal_met
    assert json.loads(path.read_text())["measured"]["trials"]
    damaged = {**kept["measured"], "trials": 3}
    path.write_text(json.dumps({**kept, "measured": damaged}))
    with pytest.raises(octavo.OctavoError, match=r"damaged trials; delete it"):
        tune(folder, tolerance=0.0008)
    path.write_text(json.dumps(kept))


def test_a_resumed_run_is_not_given_its_own_trials(tmp_path: Path) -> None:
    settings = {"tolerance": 0.0008, "storage": tmp_path / "history.db"}
    first = tune(tmp_path, **settings)
    again = tune(tmp_path, **settings)
    assert [t.recipe for t in again.trials] == [t.recipe for t in first.trials]
