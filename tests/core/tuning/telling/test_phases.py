"""Which phases runs tell, and that each of them looks at the time limit, in any thread."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.sensitivity.output_distance import OutputDistance
from tests import tiny


class Seen(octavo.Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[octavo.Phase] = []
        self.finished_trials: list[tuple[int, int | None, float | None]] = []
        self.begun: list[int] = []

    def phase(self, phase: octavo.Phase) -> None:
        self.phases.append(phase)

    def trying(self, number: int, recipe: octavo.Recipe) -> None:
        self.begun.append(number)

    def finished(
        self, trial: octavo.Trial, best: octavo.Trial | None, seconds_left: float | None
    ) -> None:
        self.finished_trials.append(
            (trial.number, best.number if best else None, seconds_left)
        )

    @property
    def names(self) -> list[str]:
        """Names of the phases, each once, in the order in which they began."""
        return list(dict.fromkeys(p.name for p in self.phases if p.name))


def tune(storage: Path, score: Any = tiny.accuracy, **settings: Any) -> octavo.Result:
    settings = {
        "minimise": "size",
        "host": tiny.host(),
        "accuracy": {"guard": False},
        **settings,
    }
    return octavo.autotune(
        tiny.chain(), score, tiny.calibration(), storage=storage, **settings
    )


def test_a_run_names_its_phases_in_their_order(tmp_path: Path) -> None:
    seen = Seen()
    tune(
        tmp_path / "h.db",
        tiny.nearness,
        strategy="mse_v2",
        tolerance=1e-9,
        max_trials=3,
        callbacks=[seen],
    )
    assert seen.names == [
        "opening",
        "float baseline",
        "calibration",
        "check of the score",
        "trials",
        "sensitivities",
        "confirmation",
        "figures by layer",
    ]
    batches = [p for p in seen.phases if p.name == "calibration"]
    assert [(p.done, p.total) for p in batches] == [(n, 4) for n in range(5)]
    probes = [p for p in seen.phases if p.name == "sensitivities"]
    assert probes[0].done == 0 and probes[0].about == "on tiny"
    assert any(p.done == p.total for p in probes)


def test_what_is_known_is_no_probe(tmp_path: Path) -> None:
    def probes(storage: Path) -> int:
        seen = Seen()
        tune(
            storage,
            tiny.nearness,
            strategy="prefix",
            tolerance=1e-9,
            max_trials=2,
            callbacks=[seen],
            sensitivities=tmp_path / "losses.json",
        )
        return sum(p.name == "sensitivities" for p in seen.phases)

    assert probes(tmp_path / "1.db") > 0
    assert probes(tmp_path / "2.db") == 0


def test_the_time_left_is_unknown_before_probes_and_known_after(tmp_path: Path) -> None:
    seen = Seen()
    tune(
        tmp_path / "h.db",
        tiny.nearness,
        strategy="prefix",
        tolerance=1e-9,
        max_trials=6,
        callbacks=[seen],
    )
    before = [p for p in seen.phases if p.name in ("opening", "calibration")]
    assert all(p.seconds_left is None for p in before)
    number = max(i for i, p in enumerate(seen.phases) if p.name == "sensitivities")
    after = [p for p in seen.phases[number + 1 :] if p.name]
    assert after and all(p.seconds_left is not None for p in after)


def test_trials_of_an_earlier_run_are_told_for_what_they_are(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"strategy": "random", "seed": 3}
    tune(tmp_path / "h.db", max_trials=4, **settings)
    seen = Seen()
    tune(tmp_path / "h.db", max_trials=6, callbacks=[seen], **settings)
    assert seen.begun == [5, 6]
    assert [number for number, _, _ in seen.finished_trials] == [1, 2, 3, 4, 5, 6]
    for number, best, left in seen.finished_trials:
        assert best is None or best <= number
        assert (left is None) == (number <= 4)
    first = next(p for p in seen.phases if p.name == "trials")
    assert (first.done, first.total) == (4, 6)


def test_a_listener_that_raises_costs_a_warning(tmp_path: Path) -> None:
    class Raises(octavo.Progress):
        def phase(self, phase: octavo.Phase) -> None:
            raise RuntimeError("no phases, please")

        def closed(self) -> None:
            raise RuntimeError("not closed")

    with pytest.warns(UserWarning, match=r"Raises\.phase raised .*no phases, please"):
        result = tune(tmp_path / "h.db", max_trials=1, callbacks=[Raises()])
    assert result.trials


def test_a_callback_of_before_need_not_know_phases(tmp_path: Path) -> None:
    class Old:
        def __getattr__(self, name: str) -> Any:
            if name in ("phase", "closed"):
                raise AttributeError(name)
            return lambda *told: None

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="callback .* raised")
        result = tune(tmp_path / "h.db", max_trials=1, callbacks=[Old()])
    assert result.trials


def elsewhere(run: Any) -> Any:
    """Run something in another thread than the main one, where no alarm rings."""
    assert threading.current_thread() is threading.main_thread()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(60)


def test_probes_end_at_the_time_limit_in_any_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Any, recipe: Any) -> float:
        time.sleep(0.25)
        return 1.0

    tune(tmp_path / "imports.db", max_trials=1)
    monkeypatch.setattr(OutputDistance, "of", slow)
    seen = Seen()
    began = time.perf_counter()
    result = elsewhere(
        lambda: tune(
            tmp_path / "h.db",
            tiny.nearness,
            strategy="prefix",
            tolerance=1e-9,
            timeout=3.0,
            callbacks=[seen],
        )
    )
    assert time.perf_counter() - began < 3.0 + 2.0
    assert "while the strategy looked for the next recipe" in result.reason
    probes = [p for p in seen.phases if p.name == "sensitivities"]
    assert 0 < probes[-1].done < (probes[-1].total or 0)


def test_calibration_ends_at_the_time_limit_in_any_thread(tmp_path: Path) -> None:
    def batches() -> Iterator[Any]:
        while True:
            time.sleep(0.02)
            yield tiny.calibration()[0]

    began = time.perf_counter()
    result = elsewhere(
        lambda: octavo.autotune(
            tiny.chain(),
            tiny.accuracy,
            batches,
            timeout=2.0,
            storage=tmp_path / "h.db",
            host=tiny.host(),
        )
    )
    assert time.perf_counter() - began < 2.0 + 3.0
    assert "before calibration was done" in result.reason
