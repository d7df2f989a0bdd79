"""Observing a model a few values at a time: a pass ends after the last value asked for, and the next one goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.run.batches import Call
from octavo.core.contract.adapter import Sink
from octavo.core.errors import DataError, OctavoError
from octavo.core.values.calls import Call as Given
from octavo.core.values.calls import shown

from .float_runs import resumes, watch_for
from .prefix_reuse import bytes_of
from .watch import Watch


class Resumable:
    """Observes values over the same batches, some of them at a time.

    What the stretch of the model after the last value needs is kept for each batch, around one place in the model at a time, and
    a call whose values all lie behind it starts there. Any other call runs from the inputs.

    Args:
        capture: The float model.
        calls: Gives the batches; it may be called again.
        limit: Bytes that may be kept, the batches included; where they are not enough nothing is.
    """

    def __init__(self, capture: Capture, calls: Callable[[], Iterator[Call]], limit: int) -> None:
        self._capture = capture
        self._calls = calls
        self._limit = limit
        self._kept: list[tuple[Call, Mapping[int, Any]]] = []
        self._resumes: bool | None = None

    def __call__(self, values: Iterable[str], sink: Sink) -> int:
        """Hand each array of each named value to ``sink``; return the number of batches."""
        values = tuple(values)
        first, stop = self._capture.span(values)
        # Whoever fails on the way leaves nothing half done behind.
        kept, self._kept = self._kept, []
        start = max((place for place in kept[0][1] if place <= first), default=0) if kept else 0
        start = start if start and self._from_there(kept[0][0]) else 0
        source: Iterator[tuple[Call, Any]] = (
            _taken(kept) if start else ((call, None) for call in self._calls())
        )
        if not start:
            kept.clear()
        watch = watch_for(self._capture, values, sink, start)
        reached: list[tuple[Call, Mapping[int, Any]]] = []
        keeps, room, count = (
            stop < self._capture.end and self._limit > 0 and self._resumes is not False,
            self._limit,
            0,
        )
        with torch.no_grad():
            for call, before in source:
                after = _watched(watch, call, before, count)
                del before
                count += 1
                if not keeps:
                    continue
                reached.append((call, after))
                room -= bytes_of(reached[-1])
                # A batch that did not come by the same places cannot go on where the others do.
                if room < 0 or after.keys() != reached[0][1].keys():
                    keeps = False
                    reached.clear()
        self._kept = reached
        return count

    def _from_there(self, call: Call) -> bool:
        if self._resumes is None:
            self._resumes = resumes(self._capture, call)
        return self._resumes


def _watched(watch: Watch, call: Call, before: Any, number: int) -> Mapping[int, Any]:
    try:
        return watch(call, before)
    except OctavoError:
        raise
    except Exception as error:
        args, kwargs = call
        said = (str(error) or type(error).__name__).splitlines()[0]
        given = shown(Given(*args, **kwargs))
        raise DataError(
            f"calibration batch {number} ({given}) does not run on the float model: {said}"
        ) from error


def _taken(kept: list[tuple[Call, Any]]) -> Iterator[tuple[Call, Any]]:
    """Yield the items, each let go of."""
    kept.reverse()
    while kept:
        yield kept.pop()
