"""Which trial is the best, why, and that it lies on the front."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octavo.core.scoring.choice import choice, choose, contenders, pareto
from octavo.core.scoring.why_best import why_best
from octavo.core.values.recipe import Recipe
from octavo.core.values.sampling import sampling_of
from octavo.core.values.trial import Measurement, Trial

BOTH = ("latency", "size")


def share(value: float, spread: float = 0.0, unit: str = "ms") -> Measurement:
    scale = 10.0
    low, high = value - spread, value + spread
    return Measurement(scale * value, scale * low, scale * high, unit, value)


def trial(
    number: int,
    margin: float,
    latency: float,
    size: float,
    spread: float = 0.0,
    passed: bool | None = None,
) -> Trial:
    right = round(719 * (0.98 + margin / 100))
    scores = [1.0] * right + [0.0] * (719 - right)
    return Trial(
        number,
        Recipe(backend="toy"),
        metrics={"accuracy": right / 719},
        passed=margin >= 0 if passed is None else passed,
        margin=margin,
        objectives={
            "latency": share(latency, spread),
            "size": share(size, unit="bytes"),
        },
        sampling={"accuracy": sampling_of(scores)},
    )


def test_114_bytes_of_223_kB_do_not_beat_a_better_accuracy_and_latency() -> None:
    # The demo's run of which "best" lay off its own front.
    smaller = trial(1, 0.85, 0.262, 0.222786, spread=0.05)
    better = trial(4, 1.0, 0.217, 0.222900, spread=0.05)
    found = choice([smaller, better], BOTH)
    assert found is not None
    assert found.best is better
    said = why_best(found, rounds=12)
    assert "Trials 1 and 4 tie in latency (0.217 to 0.262 of float's time)" in said
    assert "and in size (0.223 of float's size)" in said
    assert "trial 4 is the most accurate of them" in said
    assert "1 of 719 samples" in said
    assert "12 rounds" in said


def test_an_objective_that_decides_is_named_with_the_next_one() -> None:
    trials = [
        trial(n, 0.5, latency, 0.25) for n, latency in ((1, 0.3), (2, 0.5), (3, 0.9))
    ]
    found = choice(trials, BOTH)
    assert found is not None
    said = why_best(found)
    assert said == "Trial 1 is the fastest: 0.3 of float's time against 0.5 of trial 2."


def test_of_ties_that_are_as_accurate_the_sentence_tells_the_truth() -> None:
    first, second = trial(2, 0.5, 0.36, 0.25, 0.02), trial(5, 0.5, 0.37, 0.25, 0.02)
    found = choice([first, second], BOTH)
    assert found is not None
    assert "as accurate as trial 5, trial 2 was tried first" in why_best(found)
    # The later one is no worse in anything: the earlier one would lie behind the front.
    ahead = trial(5, 0.5, 0.35, 0.25, 0.02)
    found = choice([first, ahead], BOTH)
    assert found is not None
    assert found.best is ahead
    assert "trial 5 is ahead of it in the figures themselves" in why_best(found)


def test_one_that_beats_the_choice_of_the_ties_is_not_called_one_of_them() -> None:
    # The last one ties by its wide spread, is the smallest, and lies behind the second.
    fast = trial(1, 0.5, 0.30, 0.28)
    ahead = trial(2, 0.9, 0.40, 0.255)
    wide = trial(3, 0.5, 0.42, 0.256, spread=0.15)
    found = choice([fast, ahead, wide], BOTH)
    assert found is not None
    assert found.best is ahead
    said = why_best(found)
    assert "Trials 1 and 3 tie in latency" in said
    assert "trial 2 is no worse in accuracy and in everything than trial 3" in said


def test_the_only_one_needs_no_comparison() -> None:
    found = choice([trial(7, 0.5, 0.3, 0.2), trial(8, -0.5, 0.1, 0.1)], BOTH)
    assert found is not None
    assert why_best(found) == "Trial 7 is the only one that passes."


def test_what_may_not_be_chosen_beats_nothing_on_the_front() -> None:
    over_budget = trial(1, 0.9, 0.1, 0.1, passed=False)
    best = trial(2, 0.5, 0.3, 0.3)
    assert choose([over_budget, best], BOTH) is best
    assert pareto([over_budget, best], BOTH) == (best,)


def test_contenders_are_the_fastest_of_those_that_tie_in_what_comes_before() -> None:
    trials = [
        trial(1, 0.5, 0.9, 0.25),
        trial(2, 0.5, 0.4, 0.251),
        trial(3, 0.5, 0.1, 0.5),
        trial(4, -1.0, 0.1, 0.25),
        trial(5, 0.5, 0.3, 0.252),
    ]
    by_size = contenders(trials, ("size", "latency"), "latency", 2)
    assert [t.number for t in by_size] == [5, 2]
    by_latency = contenders(trials, BOTH, "latency", 3)
    assert [t.number for t in by_latency] == [3, 5, 2]


figures = st.floats(0.05, 2.0)
anything = st.tuples(st.floats(-1, 1), figures, figures, st.floats(0, 0.3))


@given(st.lists(anything, min_size=1, max_size=12))
def test_best_is_always_on_the_front(
    rows: list[tuple[float, float, float, float]],
) -> None:
    trials = [
        trial(number, margin, latency, size, spread=min(spread, latency))
        for number, (margin, latency, size, spread) in enumerate(rows, 1)
    ]
    best = choose(trials, BOTH)
    has_passed = any(t.passed for t in trials)
    assert (best is not None) == has_passed
    if best is not None:
        assert best.passed
        assert best.number in {t.number for t in pareto(trials, BOTH)}
