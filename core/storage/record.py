"""The record of a run's trials, and what is refused to go on from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.core.errors import StoreError
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

REMEDY = (
    "Its trials cannot be compared with this run's. Start a study of its own: another name "
    "(study=) or another history file (--storage, storage=); where a fresh start is meant, "
    "resume=False "
    "refuses every study that has trials"
)


class History:
    """Trials of one run, in memory only: the base of the durable one, and enough for dry runs."""

    location = ""
    notes: tuple[str, ...] = ()
    """What the user should know of how the run before ended."""

    name = ""

    def __init__(self) -> None:
        self._trials: dict[int, Trial] = {}
        self._facts: dict[str, Any] = {}
        self._searched: dict[int, Trial] = {}

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Finished trials by number, the baseline (0) first."""
        return tuple(self._trials[n] for n in sorted(self._trials))

    def begin(self, number: int, recipe: Recipe) -> str:
        """Note that a trial starts.

        Returns:
            An error text if its process crashed in this recipe twice before; else ''.
        """
        return ""

    def interrupt(self, number: int) -> None:
        """Note that a trial was ended from outside (Ctrl-C, a signal), and not by its recipe."""

    def finish(self, trial: Trial) -> None:
        """Record a finished trial."""
        self._trials[trial.number] = trial

    def fact(self, key: str) -> Any:
        """Return a recorded fact of the run, None where there is none."""
        return self._facts.get(key)

    def keep(self, key: str, value: Any) -> Any:
        """Record a JSON-ready fact of the run if there is none of that name yet.

        Returns:
            What is recorded.
        """
        if self.fact(key) is None:
            self._record(key, value)
        return self.fact(key)

    def _record(self, key: str, value: Any) -> None:
        self._facts[key] = value

    def put(self, key: str, value: Any) -> None:
        """Record a JSON-ready fact of the run in place of the one of that name."""
        self._record(key, value)

    @property
    def timed(self) -> frozenset[int]:
        """Numbers of the trials whose figures are of a last timing, side by side."""
        return frozenset(self._searched)

    def retime(self, trial: Trial) -> None:
        """Record that a finished trial was measured again; ``trial`` holds the figures."""
        before = self._trials[trial.number]
        self._searched.setdefault(trial.number, before)
        self._trials[trial.number] = trial

    def as_searched(self, trial: Trial) -> Trial:
        """Return a trial with the figures that the search measured.

        Strategies are told these, so that one made anew goes the way that the one before went.
        """
        before = self._searched.get(trial.number)
        return trial if before is None else replace(trial, objectives=before.objectives)

    def refuse_resume(self, why: str) -> StoreError:
        """Return the error of a run that may not go on from this history."""
        return StoreError(
            f"study {self.name!r} was made for another run: {why}. {REMEDY}"
        )

    def refuse(self, trial: Trial) -> None:
        """Record that a finished trial is refused after all; ``trial`` says why."""
        self._trials[trial.number] = trial

    def close(self) -> None:
        """Release the store."""
