"""The time that is left: the sum over the phases to come, each by its own measured rate."""

from __future__ import annotations

import pytest

from octavo.core.contract.strategy import Foresight
from octavo.core.system.clock import Clock
from octavo.core.tuning.progress import Phase, Progress
from octavo.core.tuning.telling.forecast import Forecast, Running
from octavo.core.tuning.telling.phases import Phases


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_nothing_is_known_until_every_part_is() -> None:
    now = Time()
    forecast = Forecast(("calibration", "trials"), now)
    assert forecast.left() is None
    calibration = Running("calibration", 4)
    forecast.begin(calibration)
    forecast.expect("trials", 100.0)
    assert forecast.left() is None
    now.seconds = 2.0
    calibration.advance(1, now())
    assert forecast.left() == pytest.approx(3 * 2.0 + 100.0)
    forecast.end(calibration)
    assert forecast.left() == 100.0


def test_an_item_that_takes_longer_stands_still_and_leaves_the_others_their_time() -> (
    None
):
    now = Time()
    forecast = Forecast((), now)
    phase = Running("sensitivities", 10)
    forecast.begin(phase)
    for done in (1, 2, 3):
        now.seconds += 1.0
        phase.advance(done, now())
    assert forecast.left() == pytest.approx(7.0)
    now.seconds += 0.5
    assert forecast.left() == pytest.approx(6.5)
    now.seconds += 20.0
    assert forecast.left() == pytest.approx(6.0)


def test_the_first_item_counts_only_while_there_is_no_other() -> None:
    now = Time()
    phase = Running("sensitivities", 10)
    Forecast((), now).begin(phase)
    now.seconds = 8.0
    phase.advance(1, now())
    assert phase.left(now()) == pytest.approx(9 * 8.0)
    now.seconds = 9.0
    phase.advance(2, now())
    assert phase.left(now()) == pytest.approx(8 * 1.0)


def test_a_phase_inside_another_has_time_of_its_own() -> None:
    now = Time()
    forecast = Forecast((), now)
    trials = Running("trials", 5, each=10.0)
    forecast.begin(trials)
    assert forecast.left() == pytest.approx(50.0)
    probes = Running("sensitivities", 4)
    forecast.begin(probes)
    assert forecast.left() is None
    now.seconds = 30.0
    probes.advance(1, now())
    # 3 probes of 30 s, and 5 trials of 10 s, none of whose time the probe has used up.
    assert forecast.left() == pytest.approx(90.0 + 50.0)
    now.seconds = 120.0
    probes.advance(4, now())
    forecast.end(probes)
    assert forecast.left() == pytest.approx(50.0)
    now.seconds = 124.0
    trials.advance(1, now())
    assert forecast.left() == pytest.approx(4 * 4.0)
    trials.is_whole = True
    assert forecast.left() == pytest.approx(4 * 124.0)


def test_what_was_expected_of_a_phase_is_over_with_it() -> None:
    now = Time()
    forecast = Forecast((), now)
    forecast.expect("confirmation", 8.0)
    first = Running("confirmation", None)
    forecast.begin(first)
    now.seconds = 5.0
    assert forecast.left() == pytest.approx(3.0)
    forecast.end(first)
    forecast.begin(Running("confirmation", None))
    assert forecast.left() == 0.0


def test_trials_of_an_earlier_run_tell_no_rate() -> None:
    now = Time()
    trials = Running("trials", 20, done=18, each=5.0)
    Forecast((), now).begin(trials)
    assert trials.left(now()) == pytest.approx(10.0)
    now.seconds = 3.0
    trials.advance(19, now())
    assert trials.left(now()) == pytest.approx(3.0)


def test_a_phase_that_is_left_by_an_error_takes_those_inside_it_along() -> None:
    now = Time()
    forecast = Forecast((), now)
    outer, inner = Running("trials", 3, each=1.0), Running("sensitivities", 3)
    forecast.begin(outer)
    forecast.begin(inner)
    forecast.end(outer)
    forecast.end(inner)
    assert forecast.running is None
    assert forecast.left() == 0.0


class Told(Progress):
    def __init__(self) -> None:
        self.phases: list[Phase] = []

    def phase(self, phase: Phase) -> None:
        self.phases.append(phase)


def known(phases: Phases) -> None:
    told = ("opening", "float baseline", "calibration", "confirmation")
    for name in (*told, "figures by layer"):
        phases.expect(name, 0.0)


def test_what_the_strategy_foresees_is_counted() -> None:
    now, told = Time(), Told()
    phases = Phases((told,), now=now)
    known(phases)
    ahead = Foresight(trials=20, probes=True)
    phases.foresee = lambda: ahead
    trials = phases.begin("trials", 50, each=2.0)
    assert told.phases[-1] == Phase("trials", 0, 50, None, item_left=2.0, number=1)
    ahead = Foresight(trials=20)
    phases.advance(trials)
    assert phases.left() == pytest.approx(0.0)  # the first trial took no time at all
    now.seconds = 3.0
    ahead = Foresight(trials=10)
    phases.advance(trials)
    assert phases.left() == pytest.approx(30.0)
    assert told.phases[-1].seconds_left == pytest.approx(30.0)
    assert told.phases[-1].left_after(100.0) == pytest.approx(27.0)


def test_no_estimate_is_above_the_limit() -> None:
    import time

    clock = Clock(time.perf_counter() - 50.0, 60.0)
    phases = Phases(clock=clock)
    known(phases)
    phases.foresee = Foresight
    phases.begin("trials", 50, each=100.0)
    left = phases.left()
    assert left is not None and left <= 10.0


def test_probes_are_told_as_they_are_done() -> None:
    told = Told()
    phases = Phases((told,))
    with phases.probes(3, about="on onnx") as begin_probe:
        for _ in range(3):
            begin_probe()
    counts = [p.done for p in told.phases if p.name == "sensitivities"]
    assert counts == [0, 1, 2, 3]
    assert told.phases[-1].name == ""
