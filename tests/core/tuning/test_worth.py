"""A winner improves on the float model beyond what was measured as noise, or the float model is the
result."""

from __future__ import annotations

import pytest

from octavo.core.scoring.choice import choose, compared, worth_it
from octavo.core.values.budgets import float_keeps
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec
from octavo.core.values.trial import Measurement, Trial, widths


def timed(share: float, spread: float = 0.0, float_ms: float = 10.0) -> Measurement:
    """Return a latency that is a share of the float model's, give or take a spread of
    that share."""
    value = share * float_ms
    return Measurement(
        value, value - spread * float_ms, value + spread * float_ms, "ms", share
    )


def sized(share: float) -> Measurement:
    return Measurement(1e6 * share, 1e6 * share, 1e6 * share, "bytes", share)


def trial(number: int, margin: float = 0.5, **objectives: Measurement) -> Trial:
    return Trial(
        number,
        Recipe(backend="toy"),
        passed=margin >= 0,
        margin=margin,
        objectives=objectives,
    )


STEADY = trial(0, latency=timed(1.0, 0.02), size=sized(1.0))
BUSY = trial(0, latency=timed(1.05, 0.3), size=sized(1.0))
BOTH = ("latency", "size")


@pytest.mark.parametrize(
    ("baseline", "objectives", "latency", "spread", "size", "worth"),
    [
        (STEADY, BOTH, 0.5, 0.05, 0.3, True),
        (
            STEADY,
            BOTH,
            1.25,
            0.05,
            0.3,
            False,
        ),  # the first objective decides: smaller does not make up for slower
        (STEADY, ("size", "latency"), 1.25, 0.05, 0.3, True),
        (
            STEADY,
            BOTH,
            0.99,
            0.02,
            0.3,
            True,
        ),  # as fast as float within the noise, and smaller
        (STEADY, BOTH, 0.99, 0.02, 1.02, False),
        (STEADY, BOTH, 0.99, 0.02, 0.9995, False),  # some bytes are no gain
        (
            STEADY,
            ("latency",),
            0.97,
            0.04,
            0.3,
            False,
        ),  # its own spread reaches the float model's
        (
            BUSY,
            ("latency",),
            0.8,
            0.02,
            0.3,
            False,
        ),  # the float model differs from itself by more than that
        (BUSY, ("latency",), 0.5, 0.02, 0.3, True),
        (STEADY, ("size",), 3.0, 0.02, 1.0, False),
        (STEADY, (), 3.0, 0.02, 1.0, True),  # nothing was asked for but the goal
    ],
)
def test_what_is_worth_it(
    baseline: Trial,
    objectives: tuple[str, ...],
    latency: float,
    spread: float,
    size: float,
    worth: bool,
) -> None:
    assert (
        worth_it(
            trial(1, latency=timed(latency, spread), size=sized(size)),
            baseline,
            objectives,
        )
        is worth
    )


def test_more_is_better_where_it_is() -> None:
    def rate(share: float) -> Measurement:
        return Measurement(
            share * 100,
            share * 98,
            share * 102,
            "samples/s",
            share,
            lower_is_better=False,
        )

    baseline = trial(0, throughput=rate(1.0))
    assert worth_it(trial(1, throughput=rate(1.5)), baseline, ("throughput",))
    assert not worth_it(trial(1, throughput=rate(0.8)), baseline, ("throughput",))
    assert not worth_it(trial(1, throughput=rate(1.01)), baseline, ("throughput",))


def test_what_has_no_share_is_compared_as_it_is() -> None:
    def held(value: float) -> Measurement:
        return Measurement(value, value - 1, value + 1, "MB")

    baseline = trial(0, memory=held(100))
    assert worth_it(trial(1, memory=held(50)), baseline, ("memory",))
    assert not worth_it(trial(1, memory=held(101)), baseline, ("memory",))


def test_one_that_is_no_gain_does_not_hide_one_that_is() -> None:
    """The smaller of two that tie in latency is slower than float beyond the noise; the other one
    is not."""
    slower = trial(1, latency=timed(1.06, 0.02), size=sized(0.25))
    equal = trial(2, latency=timed(1.01, 0.04), size=sized(0.5))
    assert choose([slower, equal], BOTH) is slower
    assert choose([slower, equal], BOTH, STEADY) is equal
    assert choose([slower], BOTH, STEADY) is None


def test_half_a_percent_of_size_does_not_choose_among_equally_fast_trials() -> None:
    accurate = trial(1, margin=0.9, latency=timed(0.50, 0.05), size=sized(0.2510))
    smaller = trial(2, margin=0.1, latency=timed(0.54, 0.05), size=sized(0.2500))
    assert choose([accurate, smaller], BOTH) is accurate
    assert (
        choose(
            [
                accurate,
                trial(3, margin=0.1, latency=timed(0.54, 0.05), size=sized(0.24)),
            ],
            BOTH,
        ).number
        == 3
    )
    assert choose([accurate, smaller], ("size",)) is accurate


def test_float_keeps_no_budget_below_itself() -> None:
    assert float_keeps({})
    assert float_keeps({"latency": 1.0, "bits": 32})
    assert not float_keeps({"size": 0.5})
    assert not float_keeps({"bits": 8})


def test_the_reason_has_the_figures() -> None:
    int8 = OpScheme(
        mode="weight_only", weight=QuantSpec(dtype="int8", granularity="channel")
    )
    int4 = OpScheme(
        mode="weight_only", weight=QuantSpec(dtype="int4", granularity="channel")
    )
    slow = trial(1, latency=timed(1.25), size=sized(1.02))
    assert compared(slow, BOTH) == "0.80 of float's speed, 1.02 of its size"
    ledger = {"a": Applied(int8, int8), "b": Applied(FLOAT, FLOAT)}
    assert widths(Trial(1, Recipe(), ledger=ledger)) == "8-bit"
    assert (
        widths(Trial(1, Recipe(), ledger={**ledger, "c": Applied(int4, int4)}))
        == "4- and 8-bit"
    )
