"""What a run tells while it goes on, and to whom."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

OPENING = "opening"
BASELINE = "float baseline"
CALIBRATION = "calibration"
SCORE_CHECK = "check of the score"
SENSITIVITIES = "sensitivities"
TRIALS = "trials"
RECOVERY = "recovery"
QUANTIZING = "quantizing"
FINAL_TIMING = "final timing"
CONFIRMATION = "confirmation"
FIGURES = "figures by layer"
SAVING = "saving"


@dataclass(frozen=True)
class Phase:
    """Where a run is: a phase as it begins, or goes on.

    Attributes:
        name: ``opening``, ``float baseline``, ``calibration``, ``check of the score`` (with a model
            that is broken on purpose), ``sensitivities``, ``trials``, ``recovery``, ``final
            timing``, ``confirmation``, ``figures by layer`` or ``saving``; '' between two of them.
            Of :func:`~octavo.quantize_model` they are ``opening``, ``calibration``, ``quantizing``.
        done: Items of it that are finished: batches, probes, trials.
        total: Items in all; None where that is not known. Of trials it is the most that there are.
        seconds_left: What the whole run still takes, all phases to come included; None while a
            part of it is not known.
        about: What it works on, in a few words; '' where the name says it.
        seconds: Spent in it so far.
        item_left: Of ``seconds_left``, what the item under way still takes.
        number: Counts the phases of a run; one that goes on after another inside it keeps its own.
    """

    name: str
    done: int = 0
    total: int | None = None
    seconds_left: float | None = None
    about: str = ""
    seconds: float = 0.0
    item_left: float = 0.0
    number: int = 0

    def left_after(self, seconds: float) -> float | None:
        """Return what is left of the run so many seconds after this was told.

        An item that takes longer than believed stands still, and does not eat up the others' time.
        """
        if self.seconds_left is None:
            return None
        return self.seconds_left - min(seconds, self.item_left)


class Progress:
    """Told how a run goes; subclass and override what is of interest. It must not raise."""

    def phase(self, phase: Phase) -> None:
        """A phase begins, or goes on: one more batch, probe or trial of it is finished."""

    def started(
        self, baseline: Trial, goal: str, max_trials: int, space_size: int
    ) -> None:
        """The float model is scored and the search begins."""

    def trying(self, number: int, recipe: Recipe) -> None:
        """A trial begins."""

    def finished(
        self, trial: Trial, best: Trial | None, seconds_left: float | None
    ) -> None:
        """A trial ended and is on disk.

        ``best`` is the best of the trials told so far. ``seconds_left`` estimates the rest of the
        run, None while unknown. Trials of an earlier run on the same history are told as well,
        without ``trying`` before them.
        """

    def note(self, text: str) -> None:
        """Something that the user should know (a warning, a decision)."""

    def ended(self, reason: str) -> None:
        """The search is over."""

    def closed(self) -> None:
        """The run is over and lets go of its files, however it ended."""
