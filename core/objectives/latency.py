"""Wall time of a call, interleaved with the float model's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from ..adapter import Batch
from ..trial import Measurement
from .base import Objective, Subject
from .config import LatencyConfig


class Latency(Objective):
    """Median milliseconds a call. Float model and candidate take turns in blocks, so that a drift of the machine's speed
    reaches both, and the idle, spinning threads of one runtime do not disturb the other's block."""

    unit = "ms"
    config: LatencyConfig

    def measure(self, subject: Subject, reference: Subject) -> Measurement:
        """Return the median with its quartiles, and the ratio of the medians."""
        c = self.config
        mine, other = self._batch(subject.batch), self._batch(reference.batch)
        own: list[list[float]] = []
        base: list[list[float]] = []
        _block(lambda: reference.candidate.run(other), 0)
        _block(lambda: subject.candidate.run(mine), 0)
        for _ in range(c.rounds):
            base.append(_block(lambda: reference.candidate.run(other), c.block))
            own.append(_block(lambda: subject.candidate.run(mine), c.block))
        rounds = np.array([np.median(b) for b in own]) * 1e3
        ratio = float(np.median([np.median(a) / np.median(b) for a, b in zip(own, base, strict=True)]))
        low, middle, high = np.percentile(rounds, [25, 50, 75])
        return Measurement(float(middle), float(low), float(high), self.unit, ratio)

    def _batch(self, batch: Batch) -> Batch:
        size = self.config.batch_size
        if size is None:
            return batch
        if isinstance(batch, Mapping):
            return {k: _rows(v, size) for k, v in batch.items()}
        return tuple(_rows(v, size) for v in batch)


def _rows(array: object, size: int) -> object:
    have = array.shape[0]  # type: ignore[attr-defined]
    return array[np.arange(size) % have]  # type: ignore[index]


def _block(call: Callable[[], object], seconds: float) -> list[float]:
    """Call at least twice and for at least ``seconds``; the first call of a block warms up and is not counted."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
