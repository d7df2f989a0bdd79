"""Wall time of a call, interleaved with the float model's; and throughput, which is the same
measurement turned round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from octavo.core.calibration.data import resized, rows
from octavo.core.contract.objective import Enough, Objective, Subject, Turns
from octavo.core.values.calls import Batch
from octavo.core.values.trial import Measurement

from .config import LatencyConfig, ThroughputConfig, TimedConfig

FEWEST = 3
"""Rounds in turns, at least: one may be disturbed, and of two nobody knows which."""

MOST = 30
"""Rounds of a last timing, at most: what they do not tell apart is a tie to whoever uses it."""

ERROR = 0.08
"""Probability with which the median lies beyond either end of its interval.

Two intervals of 84 % that do not meet differ at 5 % (Goldstein and Healy 1995); of intervals of
95 % too much would be called a tie.
"""


class Latency(Objective):
    """Median milliseconds a call.

    Float model and candidate take turns in blocks, so that a drift of the machine's speed reaches
    both, and the idle, spinning threads of one runtime do not disturb the other's block.
    """

    unit = "ms"
    varies = True
    config: LatencyConfig

    def measure(self, subject: Subject, reference: Subject) -> Measurement:
        """Return the median, its share of the float model's, and the spread of that share from
        round to round."""
        times = _Times([subject], reference, self.config)
        times.rounds(self.config.rounds)
        return _latency(times.of(0), _quartiles)

    def in_turns(
        self, subjects: Sequence[Subject], reference: Subject, enough: Enough
    ) -> Turns:
        """Return the same of several candidates, with an interval by which they compare."""
        times = _Times(subjects, reference, self.config)
        return _until(enough, times, lambda timed: _latency(timed, _median_interval))


class Throughput(Objective):
    """Median samples a second; more is better."""

    unit = "samples/s"
    lower_is_better = False
    varies = True
    config: ThroughputConfig

    def measure(self, subject: Subject, reference: Subject) -> Measurement:
        """Return the median, its share of the float model's, and the spread of that share from
        round to round."""
        times = _Times([subject], reference, self.config)
        times.rounds(self.config.rounds)
        return _throughput(times.of(0), _quartiles)

    def in_turns(
        self, subjects: Sequence[Subject], reference: Subject, enough: Enough
    ) -> Turns:
        """Return the same of several candidates, with an interval by which they compare."""
        times = _Times(subjects, reference, self.config)
        return _until(enough, times, lambda timed: _throughput(timed, _median_interval))


@dataclass(frozen=True)
class _Timed:
    """One candidate's times: median seconds of a call in each round.

    Attributes:
        own: The candidate's, shape (rounds,).
        base: The float model's, shape (rounds,).
        samples: In a call.
    """

    own: np.ndarray
    base: np.ndarray
    samples: int


class _Times:
    """Times the float model and candidates in turns, round by round."""

    def __init__(
        self, subjects: Sequence[Subject], reference: Subject, config: TimedConfig
    ) -> None:
        self._seconds = config.block
        everyone = (reference, *subjects)
        batches = [_sized(s.batch, config.batch_size) for s in everyone]
        self._samples = [rows(batch) for batch in batches]
        self._calls = [
            partial(s.candidate.run, batch)
            for s, batch in zip(everyone, batches, strict=True)
        ]
        self._rounds: list[list[float]] = []

    def rounds(self, count: int) -> None:
        """Let everyone have so many turns more, the float model first."""
        for _ in range(count):
            turns = [_block(call, self._seconds) for call in self._calls]
            self._rounds.append(turns)

    def __len__(self) -> int:
        return len(self._rounds)

    def of(self, subject: int) -> _Timed:
        """Return what a candidate took."""
        table = np.array(self._rounds)
        place = subject + 1
        return _Timed(table[:, place], table[:, 0], self._samples[place])

    def side_by_side(self) -> list[_Timed]:
        """Return what each candidate took, without what slowed a round for all of them.

        A round's own factor is the mean, over everyone, of how their logarithms lie above their
        medians. It is known better than any one's turn: a difference of two candidates then holds
        their own noise, and hardly that of the float model's turns.
        """
        logs = np.log(np.array(self._rounds))
        above = logs - np.median(logs, axis=0)
        steady = np.exp(logs - above.mean(axis=1, keepdims=True))
        base = np.full(len(steady), np.median(steady[:, 0]))
        return [
            _Timed(steady[:, place], base, self._samples[place])
            for place in range(1, steady.shape[1])
        ]


def _until(
    enough: Enough, times: _Times, measurement: Callable[[_Timed], Measurement]
) -> Turns:
    """Run rounds until that is enough, and return what was measured."""
    times.rounds(FEWEST)
    while True:
        measured = tuple(measurement(timed) for timed in times.side_by_side())
        turns = Turns(measured, len(times))
        if len(times) >= MOST or enough(turns):
            return turns
        times.rounds(1)


Interval = Callable[[np.ndarray], tuple[float, float]]
"""The spread of a share from round to round."""


def _latency(timed: _Timed, interval: Interval) -> Measurement:
    milliseconds = float(np.median(timed.own)) * 1e3
    return _measurement(milliseconds, timed.own / timed.base, "ms", interval)


def _throughput(timed: _Timed, interval: Interval) -> Measurement:
    rate = timed.samples / float(np.median(timed.own))
    found = _measurement(rate, timed.base / timed.own, "samples/s", interval)
    return replace(found, lower_is_better=False)


def _measurement(
    value: float, ratios: np.ndarray, unit: str, interval: Interval
) -> Measurement:
    """Return a median whose spread is that of its share of the float model's."""
    ratio = float(np.median(ratios))
    low, high = interval(ratios)
    return Measurement(value, value * low / ratio, value * high / ratio, unit, ratio)


def _quartiles(ratios: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(ratios, [25, 75])
    return float(low), float(high)


def _median_interval(ratios: np.ndarray) -> tuple[float, float]:
    """Return the 84 % interval of a median, which no distribution is assumed for; of fewer than
    five ratios it is all that was seen.

    The k-th smallest and the k-th largest hold it but with the probability that fewer than k of n
    fair coins fall on one side (the sign test's interval; Conover, Practical Nonparametric
    Statistics, section 3.2).
    """
    from scipy.stats import binom

    in_order = np.sort(ratios)
    k = max(1, int(binom.ppf(ERROR, len(ratios), 0.5)))
    return float(in_order[k - 1]), float(in_order[-k])


def _sized(batch: Batch, size: int | None) -> Batch:
    return batch if size is None else resized(batch, size)


def _block(call: Callable[[], object], seconds: float) -> float:
    """Return the median time of the calls that fill ``seconds``; the first one warms up and is not
    counted."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
