"""The phases of a run, as they go on: told to whoever listens, and looked at by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from octavo.core.contract.strategy import Foresight
from octavo.core.system.clock import Clock
from octavo.core.system.signals import OutOfTime
from octavo.core.tuning.progress import (
    BASELINE,
    CALIBRATION,
    CONFIRMATION,
    FIGURES,
    OPENING,
    SENSITIVITIES,
    TRIALS,
    Phase,
    Progress,
)

from .forecast import Forecast, Now, Running

UNTIL_THE_END = (
    OPENING,
    BASELINE,
    CALIBRATION,
    SENSITIVITIES,
    TRIALS,
    CONFIRMATION,
    FIGURES,
)
"""What every run goes through. The final timing is expected by who knows what it takes."""

FEW_SECONDS = 2.0
"""What figures by layer are believed to take: they are a small share of a run."""

Item = TypeVar("Item")

Step = Callable[[], None]
"""Called before each item of a phase."""


class Phases:
    """Tells listeners where a run is, and how long it still takes.

    Args:
        listeners: Told of each phase as it begins and goes on.
        clock: The run's limit, which no estimate is above.
        now: Returns the time in seconds.
        ahead: Names of the phases that are to come.

    Attributes:
        foresee: What the search may still ask for; it knows nothing before the search begins.
    """

    def __init__(
        self,
        listeners: Sequence[Progress] = (),
        clock: Clock | None = None,
        now: Now = time.perf_counter,
        ahead: tuple[str, ...] = UNTIL_THE_END,
    ) -> None:
        self.foresee: Callable[[], Foresight] | None = None
        self._listeners = listeners
        self._clock = clock or Clock()
        self._now = now
        self._forecast = Forecast(ahead, now)
        if FIGURES in ahead:
            self._forecast.expect(FIGURES, FEW_SECONDS)
        self._trials: Running | None = None
        self._begun = 0

    def begin(
        self,
        name: str,
        total: int | None = None,
        *,
        done: int = 0,
        about: str = "",
        each: float | None = None,
    ) -> Running:
        """Begin a phase, inside the one that goes on.

        Args:
            name: Of the phase.
            total: Items in all; None where that is not known.
            done: Of these, items that were finished before.
            about: What it works on, in a few words.
            each: Seconds that an item is believed to take before one is measured.
        """
        self._begun += 1
        phase = Running(name, total, done, about, each, number=self._begun)
        if name == TRIALS:
            self._trials = phase
        self._forecast.begin(phase)
        self._tell()
        return phase

    def advance(self, phase: Running, done: int | None = None) -> None:
        """Tell that one more item of a phase is finished, or how many are."""
        count = phase.done + 1 if done is None else done
        if phase.total is not None:
            # A backend may read its first batch twice.
            count = min(count, phase.total)
        phase.advance(count, self._now())
        self._tell()

    def end(self, phase: Running) -> None:
        """End a phase; the one around it goes on."""
        self._forecast.end(phase)
        self._tell()

    def expect(self, name: str, seconds: float | None) -> None:
        """Say what a phase to come is believed to take; None where that is not known."""
        self._forecast.expect(name, seconds)

    @contextmanager
    def within(
        self, name: str, total: int | None = None, about: str = ""
    ) -> Iterator[Step]:
        """Let a phase go on for the length of a ``with`` block.

        Yields:
            What is to be called before each of its items.
        """
        phase = self.begin(name, total, about=about)
        begun = 0

        def step() -> None:
            nonlocal begun
            if begun:
                self.advance(phase)
            begun += 1

        try:
            yield step
            if total is not None and begun:
                self.advance(phase, total)
        finally:
            self.end(phase)

    @contextmanager
    def probes(self, total: int, about: str = "") -> Iterator[Step]:
        """Let sensitivities be found out; each probe begins only while there is time.

        Raises:
            OutOfTime: By what is yielded, from the run's limit on, in any thread.
        """
        with self.within(SENSITIVITIES, total, about) as step:

            def begin_probe() -> None:
                step()
                self.check_time()

            yield begin_probe

    def each(self, phase: Running, items: Iterable[Item]) -> Iterable[Item]:
        """Return items that can be read as often as these; the clock is looked at before each.

        Raises:
            OutOfTime: As they are read, from the run's limit on, while the phase goes on.
        """
        return _Watched(self, phase, items)

    def check_time(self) -> None:
        """Raise OutOfTime from the run's limit on.

        An alarm does so in the main thread; elsewhere nothing but this does.
        """
        if self._clock.ran_out:
            raise OutOfTime

    def left(self) -> float | None:
        """Return the seconds until the end of the run; None while a part of it is not known."""
        self._look_ahead()
        seconds = self._forecast.left()
        if seconds is None:
            return None
        return min(seconds, max(0.0, self._clock.left))

    def close(self) -> None:
        """Tell that the run is over, however it ended."""
        for listener in self._listeners:
            listener.closed()

    def is_on(self, phase: Running) -> bool:
        """Return whether a phase is the innermost that goes on."""
        return self._forecast.running is phase

    def _look_ahead(self) -> None:
        """Take over what the strategy believes to come."""
        if self.foresee is None:
            return
        ahead = self.foresee()
        self._forecast.expect(SENSITIVITIES, None if ahead.probes else 0.0)
        if self._trials is not None:
            self._trials.remaining = ahead.trials
            self._trials.is_whole = ahead.probes_each

    def _tell(self) -> None:
        if not self._listeners:
            return
        running = self._forecast.running
        told = Phase("") if running is None else self._told(running)
        for listener in self._listeners:
            listener.phase(told)

    def _told(self, running: Running) -> Phase:
        now = self._now()
        return Phase(
            running.name,
            running.done,
            running.total,
            seconds_left=self.left(),
            about=running.about,
            seconds=running.spent(now),
            item_left=running.item_left(now),
            number=running.number,
        )


class _Watched(Generic[Item]):
    """Items of a phase, each of which begins only while there is time."""

    def __init__(self, phases: Phases, phase: Running, items: Iterable[Item]) -> None:
        self._phases = phases
        self._phase = phase
        self._items = items

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            # Later passes belong to other phases, which have limits of their own.
            if self._phases.is_on(self._phase):
                self._phases.check_time()
            yield item
            if self._phases.is_on(self._phase):
                self._phases.advance(self._phase)


__all__ = ["Phases", "Step"]
