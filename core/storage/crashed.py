"""What became of trials that a run before this one began and did not finish."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.core.system.crashes import cause_of_death
from octavo.core.system.redaction import redacted

from .stores import home

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

CRASHES = 2
"""How often the process must have crashed in a recipe until that is not tried again."""


class Crashed:
    """Tells trials in which the process crashed from those that were ended from outside.

    The latter are just run again.

    Args:
        storage: Of the study.
        unfinished: Its rows without a trial; those that still run are closed.

    Attributes:
        note: What the user should know of it; '' where there is nothing.
    """

    def __init__(self, storage: RDBStorage, unfinished: Iterable[FrozenTrial]) -> None:
        self._storage = storage
        self._causes: dict[str, list[str]] = {}
        self.note = ""
        for frozen in unfinished:
            attributes = frozen.user_attrs
            cause = str(attributes.get("octavo:crashed", ""))
            if not frozen.state.is_finished():
                cause = self._ended(frozen)
                self.note = self.note if cause else _VANISHED
            if cause:
                recipe = attributes.get("octavo:recipe", "")
                self._causes.setdefault(recipe, []).append(cause)

    def refusal(self, recipe: str) -> str:
        """Return why a recipe, by its digest, is not tried again; '' where it may be."""
        causes = self._causes.get(recipe, [])
        if len(causes) < CRASHES:
            return ""
        return (
            f"the process crashed by itself in this recipe {len(causes)} times before "
            f"({', '.join(causes)}); it is not tried again. executor='process' lets a crash end a "
            "trial and not the run"
        )

    def _ended(self, frozen: FrozenTrial) -> str:
        """Close the row of a trial whose process is gone; return what it died of, '' if unknown."""
        from optuna.trial import TrialState

        cause = cause_of_death(frozen.user_attrs.get("octavo:process", {}))
        if cause:
            self._storage.set_trial_user_attr(frozen._trial_id, "octavo:crashed", cause)
        self._storage.set_trial_state_values(frozen._trial_id, TrialState.FAIL)
        return cause


_VANISHED = (
    "the process before this one ended in mid-trial without a sign of a fault of its own (killed, "
    "preempted or cut off); that trial is run again. Should it be the recipe that needs too much "
    "memory, executor='process' lets it end the trial and not the run"
)


def faults_file(url: str, name: str) -> Path:
    """Return where a crash of this run's process leaves its trace.

    Beside a file, else with octavo's own files.
    """
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        return path.with_name(f"{path.name}.faults")
    digest = hashlib.sha256(f"{redacted(url)} {name}".encode()).hexdigest()[:16]
    return home() / "faults" / f"{digest}.txt"
