"""The best few are timed again side by side, and that decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.contract.objective import Enough, Subject, Turns
from octavo.core.scoring.objectives.latency import Latency
from octavo.core.storage.history import read_history
from octavo.core.tuning.ending import final_timing
from octavo.core.tuning.ending.final_timing import is_settled, listed
from octavo.core.values.trial import Measurement
from tests import tiny


def share(value: float, half: float = 0.0) -> Measurement:
    low, high = value - half, value + half
    return Measurement(10 * value, 10 * low, 10 * high, "ms", value)


class Machine:
    """A machine whose noise in the search is known, and whose last timing tells the truth."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.measured: list[str] = []
        self.noisy: Callable[[int], Measurement] = lambda n: share(1.0 / (n + 1), 0.001)
        self.true: Callable[[int], Measurement] = lambda n: share(0.5, 0.001)
        self.timed: list[list[int]] = []
        machine = self

        def measure(_: Latency, subject: Subject, __: Subject) -> Measurement:
            return machine.noisy(machine.number(subject))

        def in_turns(
            _: Latency, subjects: Sequence[Subject], __: Subject, enough: Enough
        ) -> Turns:
            numbers = [machine.number(subject) for subject in subjects]
            machine.timed.append(numbers)
            found = [machine.true(n) if n else share(1.0, 0.001) for n in numbers]
            turns = Turns(tuple(found), 9)
            assert enough(turns) == is_settled(found[1:])
            assert not enough(Turns(tuple(found), 6))
            return turns

        monkeypatch.setattr(Latency, "measure", measure)
        monkeypatch.setattr(Latency, "in_turns", in_turns)

    def number(self, subject: Subject) -> int:
        """Return a candidate's place in the order of their first measurement, float's 0."""
        digest = subject.candidate.recipe.digest
        if digest not in self.measured:
            self.measured.append(digest)
        return self.measured.index(digest)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(final_timing, "FEW", 4)
    return Machine(monkeypatch)


@pytest.fixture
def tune(tmp_path: Path) -> Callable[..., octavo.Result]:
    def run(**settings: Any) -> octavo.Result:
        given = {
            "strategy": "random",
            "tolerance": 0.9,
            "minimise": ["latency", "size"],
            "storage": tmp_path / "history.db",
            "host": tiny.host(),
            "max_trials": 6,
            **settings,
        }
        return octavo.autotune(tiny.chain(), tiny.accuracy, tiny.calibration(), **given)

    return run


def test_the_last_timing_decides_and_not_the_searchs_noise(
    tune: Callable[..., octavo.Result], machine: Machine
) -> None:
    # In the search each trial looks faster than the one before; the third is the fastest.
    machine.true = lambda n: share(0.2 if n == 3 else 0.6, 0.001)
    result = tune()
    # The four fastest of the search beside the float model itself: the fifth was not timed again.
    assert machine.timed == [[0, 6, 5, 4, 3]]
    assert result.best.number == 3
    assert result.best.objectives["latency"].ratio == 0.2
    assert result.final["trials"] == [6, 5, 4, 3]
    assert result.final["rounds"] == 9
    assert result.final["decided"]
    assert not result.final["ties"]
    assert "fastest: 0.2 of float's time against" in result.why_best
    assert result.best in result.pareto
    # What the history holds of it is what the result says.
    _, trials, _ = read_history(result.storage)
    kept = {t.number: t.objectives["latency"] for t in trials}
    assert kept[3] == result.best.objectives["latency"]


def test_one_that_was_not_timed_again_is_timed_where_the_others_fall_behind_it(
    tune: Callable[..., octavo.Result], machine: Machine
) -> None:
    machine.noisy = lambda n: share(0.5 + 0.01 * n, 0.001)
    machine.true = lambda n: share(0.9 if n <= 4 else 0.55, 0.001)
    result = tune()
    assert sorted(machine.timed[0]) == [0, 1, 2, 3, 4]
    assert {5, 6} <= {n for numbers in machine.timed[1:] for n in numbers}
    assert result.best.number in (5, 6)


def test_noise_of_the_search_ties_with_nothing_that_was_timed_again(
    tune: Callable[..., octavo.Result], machine: Machine
) -> None:
    # In the search everything ties with everything; timed side by side the sixth is the fastest.
    machine.noisy = lambda n: share(0.9 - 0.1 * n, 0.5)
    machine.true = lambda n: share(0.25 if n == 6 else 0.35, 0.001)
    result = tune()
    assert machine.timed == [[0, 6, 5, 4, 3]]
    assert result.best.number == 6
    assert "fastest: 0.25 of float's time against 0.35" in result.why_best


def test_a_leader_by_accuracy_is_timed_though_others_are_faster(
    tune: Callable[..., octavo.Result],
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All tie in the search, and more of them than are timed again lie before the leader."""
    monkeypatch.setattr(final_timing, "FEW", 2)
    machine.noisy = lambda n: share(0.5 + 0.001 * n, 0.2)
    machine.true = lambda n: share(0.5 + 0.0001 * n, 0.001)
    result = tune()
    timed = {n for numbers in machine.timed for n in numbers}
    assert result.best.number in timed
    assert result.best in result.pareto


def test_without_time_for_more_it_is_told_that_the_leader_was_not_timed(
    tune: Callable[..., octavo.Result],
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(final_timing, "PASSES", 1)
    machine.noisy = lambda n: share(0.5 + 0.01 * n, 0.001)
    machine.true = lambda n: share(0.9, 0.001)
    result = tune()
    assert result.best.number in (5, 6)
    assert result.best in result.pareto
    told = f"trial {result.best.number} leads by the search's figures"
    assert any(told in text for text in result.remarks)


def test_a_run_that_goes_on_is_told_what_the_search_measured(
    tune: Callable[..., octavo.Result], machine: Machine
) -> None:
    machine.true = lambda n: share(0.2 if n == 3 else 0.6, 0.001)
    first = tune(strategy="bayesian")
    again = tune(strategy="bayesian")
    # Nothing is timed a second time, and the outcome is the same.
    assert len(machine.timed) == 1
    assert again.best.number == first.best.number
    assert again.final == first.final
    assert [t.recipe.digest for t in again.trials] == [
        t.recipe.digest for t in first.trials
    ]
    # A strategy made anew goes the same way: no recipe is asked for but those that are known.
    longer = tune(strategy="bayesian", max_trials=8)
    digests = [t.recipe.digest for t in longer.trials]
    assert digests[:6] == [t.recipe.digest for t in first.trials]


def test_what_cannot_be_told_apart_is_said_to_tie(
    tune: Callable[..., octavo.Result], machine: Machine
) -> None:
    machine.noisy = lambda n: share(0.9 if n <= 2 else 0.5, 0.001)
    machine.true = lambda n: share(0.5 + 0.02 * n, 0.2)
    result = tune()
    assert any("could not be told apart in latency" in text for text in result.remarks)
    assert not result.final["decided"]
    assert set(result.final["ties"]) == {3, 4, 5, 6}
    assert "tie in latency" in result.final["said"]


def test_a_trial_over_its_budget_in_the_last_timing_is_refused(
    tune: Callable[..., octavo.Result], machine: Machine
) -> None:
    machine.true = lambda n: share(0.9 if n == 6 else 0.6, 0.001)
    result = tune(budgets={"latency": 0.7})
    refused = next(t for t in result.trials if t.number == 6)
    assert "when it was timed again" in refused.refused
    assert result.best.number != 6


def test_a_model_that_fails_in_the_last_timing_keeps_the_searchs_figures(
    tune: Callable[..., octavo.Result],
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> Turns:
        raise RuntimeError("no memory for five models")

    monkeypatch.setattr(Latency, "in_turns", broken)
    result = tune()
    assert any("no memory for five models" in text for text in result.remarks)
    assert result.best.number == 6
    assert result.final == {}


def test_an_order_is_settled_by_distance_or_by_a_known_tie() -> None:
    assert is_settled([share(0.5, 0.01), share(0.6, 0.01)])
    assert is_settled([share(0.5, 0.002), share(0.501, 0.002)])
    assert not is_settled([share(0.5, 0.05), share(0.52, 0.05)])
    assert not is_settled([share(0.5, 0.4)])
    assert is_settled([share(0.5, 0.02)])


def test_numbers_in_a_sentence() -> None:
    assert listed([4]) == "4"
    assert listed([1, 4, 9]) == "1, 4 and 9"
