"""How a run shows itself: live on a terminal and in a notebook, in lines elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.text import Text

from octavo.core.report.text import duration
from octavo.core.tuning.progress import (
    OPENING,
    RECOVERY,
    SENSITIVITIES,
    TRIALS,
    Phase,
    Progress,
)
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

from .heartbeat import Heartbeat
from .lines import about, line, space_told, step, time_left
from .surfaces import EVERY, Status, Surface, surface

WORTH_A_LINE = 10
"""Probes from which on a line says that they begin."""


class ProgressDisplay(Progress):
    """Shows how a run goes, on standard error or in a notebook's cell.

    On a terminal and in a notebook a line moves with the run: the phase, its bar, the time that is
    left. Elsewhere there is a line for each trial, and at least every ten seconds one that says
    where the run is. ``octavo.autotune(..., progress=True)`` makes one; as a callback it may be
    given too::

        octavo.autotune(model, score, batches, callbacks=[octavo.ProgressDisplay()])

    Args:
        quiet: Show nothing.
        every: Seconds without a line after which one says where the run is.
    """

    def __init__(self, quiet: bool = False, every: float = EVERY) -> None:
        self._quiet = quiet
        self._every = every
        # The heartbeat looks from another thread. An interruption in the middle of a line may leave
        # the lock with the thread that holds it, which may take it again.
        self._lock = threading.RLock()
        self._surface: Surface | None = None
        self._heartbeat: Heartbeat | None = None
        self._reset()

    def _reset(self) -> None:
        self._metric = ""
        self._phase: Phase | None = None
        self._told_at = 0.0
        self._trial: tuple[int, Recipe] | None = None
        self._trial_began = 0.0
        self._tried: set[int] = set()
        self._ops = ""
        self._probes: dict[int, int] = {}

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closed()

    def phase(self, phase: Phase) -> None:
        """Show where the run is."""
        if self._quiet:
            return
        with self._lock:
            if phase.name and self._heartbeat is None:
                self._begin(anew=phase.name == OPENING)
            self._phase, self._told_at = phase, time.monotonic()
            if phase.name == TRIALS and not self._ops:
                self._ops = phase.about
                self._tell_known(phase.done)
            if phase.name == SENSITIVITIES:
                self._count(phase)
            self._here().changed()

    def started(
        self, baseline: Trial, goal: str, max_trials: int, space_size: int
    ) -> None:
        """Say where the search starts from, and how large the space is."""
        self._metric = next(iter(baseline.metrics))
        self._say(line(baseline, self._metric))
        space = space_told(space_size, self._ops)
        evaluations = (
            "one evaluation" if max_trials == 1 else f"{max_trials} evaluations"
        )
        self._say(f"goal: {goal}; {space}; at most {evaluations}")

    def trying(self, number: int, recipe: Recipe) -> None:
        """Name the trial that runs."""
        with self._lock:
            self._trial = number, recipe
            self._trial_began = time.monotonic()
            self._tried.add(number)

    def finished(
        self, trial: Trial, best: Trial | None, seconds_left: float | None
    ) -> None:
        """Show a trial of this run and the best so far."""
        with self._lock:
            self._trial = None
        if trial.number not in self._tried:
            return
        told = [line(trial, self._metric)]
        told.append(
            f"best so far: trial {best.number}" if best else "none passes so far"
        )
        if seconds_left is not None and self._here().says_time_left:
            told.append(about(seconds_left))
        self._say("; ".join(told))

    def note(self, text: str) -> None:
        """Show a remark."""
        self._say(Text("warning: ", style="yellow") + Text(text))

    def ended(self, reason: str) -> None:
        """Say why the search ended."""
        probes = sum(self._probes.values())
        beside = f"; {probes} probes of sensitivities were run" if probes else ""
        self._say(f"ended: {reason}{beside}")

    def closed(self) -> None:
        """Show no longer where the run is."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        with self._lock:
            if self._surface is not None:
                self._surface.close()
                self._surface = None

    def _begin(self, *, anew: bool) -> None:
        """Begin to show a run; of a new one nothing is known."""
        if anew:
            self._reset()
        here = self._here()
        here.begin()
        self._heartbeat = Heartbeat(self._beat)
        self._heartbeat.start(self._beat())

    def _here(self) -> Surface:
        if self._surface is None:
            self._surface = surface(self._status, self._every)
        return self._surface

    def _beat(self) -> float:
        with self._lock:
            return self._here().beat()

    def _status(self) -> Status | None:
        """Return where the run is now."""
        phase = self._phase
        if phase is None or not phase.name:
            return None
        since = time.monotonic() - self._told_at
        share = min(1.0, phase.done / phase.total) if phase.total else None
        return Status(
            step(phase, self._trial),
            share,
            duration(self._spent(phase, since)),
            time_left(phase, since),
        )

    def _spent(self, phase: Phase, since: float) -> float:
        """Return the seconds spent in a phase, or in the trial that runs."""
        if phase.name in (TRIALS, RECOVERY) and self._trial is not None:
            return time.monotonic() - self._trial_began
        return phase.seconds + since

    def _tell_known(self, trials: int) -> None:
        if trials:
            told = "one trial" if trials == 1 else f"{trials} trials"
            are = "is" if trials == 1 else "are"
            self._say(f"{told} of an earlier run {are} known")

    def _count(self, phase: Phase) -> None:
        """Count probes; where many begin, say so."""
        is_new = phase.number not in self._probes
        self._probes[phase.number] = phase.done
        if is_new and (phase.total or 0) >= WORTH_A_LINE:
            beside = " beside the evaluations" if self._ops else ""
            self._say(f"sensitivities {phase.about}: {phase.total} probes{beside}")

    def _say(self, message: str | Text) -> None:
        if self._quiet:
            return
        with self._lock:
            self._here().say(message if isinstance(message, Text) else Text(message))


__all__ = ["ProgressDisplay"]
