"""Observing a model a few values at a time.

A pass ends after the last value asked for, and the next one goes on from there.
"""

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

Calls = Callable[[], Iterator[Call]]
"""Gives the batches; it may be called again."""

Kept = list[tuple[Call, Mapping[int, Any]]]
"""Batches, and what the rest of the model needs of each: place -> what is alive there."""


class Resumable:
    """Observes values over the same batches, some of them at a time.

    What the stretch of the model after the last value needs is kept for each batch, around one
    place in the model at a time, and a call whose values all lie behind it starts there. Any other
    call runs from the inputs.

    Args:
        capture: The float model.
        calls: Gives the batches; it may be called again.
        limit: Bytes that may be kept, the batches included; where they are not enough nothing is.
        is_revised: Weights behind the last values may be replaced between two calls: what is kept
            lies before whatever reads these values.
    """

    def __init__(
        self,
        capture: Capture,
        calls: Callable[[], Iterator[Call]],
        limit: int,
        *,
        is_revised: bool = False,
    ) -> None:
        self._is_revised = is_revised
        self._capture = capture
        self._calls = calls
        self._limit = limit
        self._kept: Kept = []
        self._resumes: bool | None = None

    def __call__(self, values: Iterable[str], sink: Sink) -> int:
        """Hand each array of each named value to ``sink``; return the number of batches."""
        values = tuple(values)
        first, stop = self._capture.span(values)
        # Whoever fails on the way leaves nothing half done behind.
        kept, self._kept = self._kept, []
        start = self._start(kept, first)
        if not start:
            kept.clear()
        watch = watch_for(self._capture, values, sink, start)
        goes_on = (
            stop < self._capture.end and self._limit > 0 and self._resumes is not False
        )
        reached = _Reached(self._limit if goes_on else 0)
        count = 0
        with torch.no_grad():
            for call, before in _taken(kept) if start else self._from_inputs():
                after = _watched(watch, call, before, count)
                # Let go of before the next batch, whose own is alive by then.
                del before
                count += 1
                if self._is_revised:
                    last = self._capture.before_readers(values)
                    after = {at: v for at, v in after.items() if at <= last}
                reached.add(call, after)
        self._kept = reached.kept
        return count

    def _start(self, kept: Kept, first: int) -> int:
        """Return the place where runs start: the last one that is kept before all values, or 0."""
        if not kept:
            return 0
        call, places = kept[0]
        start = max((place for place in places if place <= first), default=0)
        return start if start and self._from_there(call) else 0

    def _from_there(self, call: Call) -> bool:
        if self._resumes is None:
            self._resumes = resumes(self._capture, call)
        return self._resumes

    def _from_inputs(self) -> Iterator[tuple[Call, Any]]:
        for call in self._calls():
            yield call, None


class _Reached:
    """What is kept of the batches of one pass, while there is room.

    Args:
        limit: Bytes; 0 to keep nothing.
    """

    def __init__(self, limit: int) -> None:
        self.kept: Kept = []
        self._room = limit
        self._keeps = limit > 0

    def add(self, call: Call, after: Mapping[int, Any]) -> None:
        """Keep a batch and what is alive where its run stopped; or give all up."""
        if not self._keeps:
            return
        self.kept.append((call, after))
        self._room -= bytes_of((call, after))
        # A batch that did not come by the same places cannot go on where the others do.
        came_elsewhere = after.keys() != self.kept[0][1].keys()
        if self._room < 0 or came_elsewhere:
            self._keeps = False
            self.kept.clear()


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
