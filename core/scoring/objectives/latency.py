"""Wall time of a call, interleaved with the float model's; and throughput, which is the same
measurement turned round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from octavo.core.calibration.data import resized, rows
from octavo.core.contract.objective import Objective, Subject
from octavo.core.values.calls import Batch
from octavo.core.values.trial import Measurement

from .config import LatencyConfig, ThroughputConfig, TimedConfig


class Latency(Objective):
    """Median milliseconds a call.

    Float model and candidate take turns in blocks, so that a drift of the machine's speed reaches
    both, and the idle, spinning threads of one runtime do not disturb the other's block.
    """

    unit = "ms"
    config: LatencyConfig

    def measure(self, subject: Subject, reference: Subject) -> Measurement:
        """Return the median, its share of the float model's, and the spread of that share from
        round to round."""
        seconds, ratios, _ = interleave(subject, reference, self.config)
        return _measurement(seconds * 1e3, ratios, self.unit)


class Throughput(Objective):
    """Median samples a second; more is better."""

    unit = "samples/s"
    lower_is_better = False
    config: ThroughputConfig

    def measure(self, subject: Subject, reference: Subject) -> Measurement:
        """Return the median, its share of the float model's, and the spread of that share from
        round to round."""
        seconds, ratios, count = interleave(subject, reference, self.config)
        found = _measurement(count / seconds, 1 / ratios, self.unit)
        return replace(found, lower_is_better=False)


def _measurement(value: float, ratios: np.ndarray, unit: str) -> Measurement:
    """Return a median whose spread is that of its share of the float model's, by quartiles."""
    low, ratio, high = (float(r) for r in np.percentile(ratios, [25, 50, 75]))
    return Measurement(value, value * low / ratio, value * high / ratio, unit, ratio)


def interleave(
    subject: Subject, reference: Subject, config: TimedConfig
) -> tuple[float, np.ndarray, int]:
    """Time both in turns.

    Returns:
        The candidate's median seconds; candidate / float in each round, shape (rounds,); the number
        of samples in a call.
    """
    mine = _sized(subject.batch, config.batch_size)
    other = _sized(reference.batch, config.batch_size)
    own: list[float] = []
    base: list[float] = []
    for _ in range(config.rounds):
        in_float = _block(lambda: reference.candidate.run(other), config.block)
        base.append(in_float)
        quantized = _block(lambda: subject.candidate.run(mine), config.block)
        own.append(quantized)
    ratios = np.array(own) / np.array(base)
    median = float(np.median(own))
    return median, ratios, rows(mine)


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
