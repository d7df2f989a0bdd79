"""What every step of a run works with: models, scores, yardsticks and the record of trials."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from octavo.core.calibration.data import CalibrationData
from octavo.core.contract.adapter import Candidate, Opened
from octavo.core.contract.criterion import Criterion
from octavo.core.contract.objective import Objective, Subject
from octavo.core.contract.strategy import Believed
from octavo.core.quantizing.realize import Realizer
from octavo.core.scoring.choice import Choice, choice, choose
from octavo.core.scoring.scoring import Scoring
from octavo.core.scoring.yardstick import Yardstick
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.storage.history import History
from octavo.core.system.clock import Clock
from octavo.core.values.budgets import float_keeps
from octavo.core.values.recipe import Recipe
from octavo.core.values.space import TuningSpace
from octavo.core.values.trial import Measurement, Trial

from .progress import Progress
from .telling.phases import Phases
from .telling.remarks import Remarks

REFUSED_MARGIN = -0.01
"""The margin of a trial that passed in the search and was refused after it, at most.

Strategies rank by it, so it is next to a pass; and it is a constant, so that nothing of the
held-out data but the refusal itself reaches the search.
"""


Judge = Callable[[Candidate], Mapping[str, float]]
"""Returns the distances ``before`` and ``after`` of a model that has learned further."""


@dataclass(frozen=True)
class Backend:
    """One backend of a run.

    Attributes:
        opened: The opened model.
        space: All that its ops may take.
        searched: The part of the space that strategies see.
        realizer: Quantizes.
        data: Calibration batches in its form.
        left_out: What of the space is not searched, and why.
        settle: Returns what is carried out of a recipe (:mod:`.settling`).
    """

    opened: Opened
    space: TuningSpace
    searched: TuningSpace
    realizer: Realizer
    data: CalibrationData
    left_out: tuple[str, ...] = ()
    settle: Callable[[Recipe], Recipe] = lambda recipe: recipe


@dataclass
class Bench:
    """Holds what a run works with, and measures, ranks and refuses with it.

    Attributes:
        backends: By name.
        reference: The float model as given, for interleaved measurements.
        scoring: Scores candidates.
        criterion: Judges.
        yardstick: The float model's score on the search's data.
        held_out: The same on held-out data; None where there is none.
        objectives: By name, most important first.
        history: Where trials are kept.
        progress: Told how it goes.
        phases: Where the run is, and how long it still takes.
        remarks: Told what the user should know.
        notify: Called after each trial with it (plugins' hook).
        budgets: Hard limits; a trial passes only if it keeps them.
        checked: What must be measured for the budgets beside the objectives, by name.
        clock: The run's time limit.
        scored: The float model's trial; None until it is scored.
        sensitivities: What knows them, by backend; of those that have a choice.
        narrowed: Leaves the trials among which the strategy lets the objectives decide.
        front: Gives by backend what the strategy believes of loss by size.
        floats: The float model's trials on other backends than the baseline's, by name.
        refining: Digest of a recipe that refines a winner -> what judges it before it is scored.
    """

    backends: Mapping[str, Backend]
    reference: Subject
    scoring: Scoring
    criterion: Criterion
    yardstick: Yardstick
    held_out: Yardstick | None
    objectives: Mapping[str, Objective]
    history: History
    progress: Sequence[Progress] = ()
    phases: Phases = field(default_factory=Phases)
    remarks: Remarks = field(default_factory=Remarks)
    notify: Callable[[Trial], None] = lambda trial: None
    budgets: Mapping[str, float] = field(default_factory=dict)
    checked: Mapping[str, Objective] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    scored: Trial | None = None
    sensitivities: Mapping[str, SensitivityService] = field(default_factory=dict)
    narrowed: Callable[[Sequence[Trial]], Sequence[Trial]] = lambda trials: trials
    front: Callable[[], Mapping[str, Sequence[Believed]]] = dict
    floats: dict[str, Trial] = field(default_factory=dict)
    refining: dict[str, Judge] = field(default_factory=dict)

    @property
    def baseline(self) -> Trial:
        """The float model's trial, which every step after the first relies on."""
        assert self.scored is not None
        return self.scored

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials of the history but the baseline."""
        return tuple(t for t in self.history.trials if t.number > 0)

    def space_told(self) -> str:
        """Say how large the space is: how many ops take one of how many choices at most."""
        units = [u for b in self.backends.values() for u in b.searched.tunable]
        most = max((len(unit.choices) for unit in units), default=0)
        return f"{len(units)} ops with up to {most} choices"

    def tell(self, text: str, level: int = logging.WARNING) -> None:
        """Pass a remark on: to whoever listens, to the log, and into the result."""
        self.remarks.tell(text, level=level)

    def measure(self, subject: Subject) -> dict[str, Measurement]:
        """Measure every objective, and what budgets need beside them, against the float model."""
        wanted = {**self.objectives, **self.checked}
        return {
            name: objective.measure(subject, self.reference)
            for name, objective in wanted.items()
        }

    def best(self, among: Collection[int] | None = None) -> Trial | None:
        """Return the best passing trial so far, or of those with these numbers.

        None while none of them is worth it, where the float model itself passes.
        """
        found = self.choice(among)
        return self._as_recorded(found.best) if found is not None else None

    def choice(self, among: Collection[int] | None = None) -> Choice | None:
        """Return the same with how it was chosen."""
        trials = self._competing()
        if among is not None:
            trials = [t for t in trials if t.number in among]
        return choice(
            self._left_by_the_search(trials), tuple(self.objectives), self.rival
        )

    def _left_by_the_search(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials without those that pass and that the strategy leaves out, and without
        those in whose place a refinement stands."""
        passing = [t for t in trials if t.passed and t.number > 0 and not t.is_gain]
        left = {t.number for t in self.narrowed(passing)}
        dropped = [t for t in passing if t.number not in left]
        recipes = {t.recipe.digest for t in dropped}
        # The strategy knows of no refinement: each goes with the trial that it began at.
        kept = [t for t in trials if t.recipe.unrecovered.digest not in recipes]
        return without_refined(kept)

    @property
    def rival(self) -> Trial | None:
        """The float model, where it may be the result itself: a winner must improve on it."""
        return self.scored if float_keeps(self.budgets) else None

    def no_gain(self) -> Trial | None:
        """Return the best passing trial where none improves on the float model; else None."""
        competing = self._left_by_the_search(self._competing())
        found = choose(competing, tuple(self.objectives))
        if found is None or self.best() is not None:
            return None
        return self._as_recorded(found)

    def leader(self) -> Trial | None:
        """Return the best passing trial, even where it is no gain on the float model."""
        return self.best() or self.no_gain()

    def _competing(self) -> list[Trial]:
        """Return all trials as they compete with each other.

        Once some were timed side by side, the noise of the search makes no other one tie with
        them: it must look better by its figure, and is then timed as they were.
        """
        timed = self.history.timed
        trials = self.history.trials
        if not timed:
            return list(trials)
        return [t if t.number in timed else _without_spread(t) for t in trials]

    def _as_recorded(self, trial: Trial) -> Trial:
        return next(t for t in self.history.trials if t.number == trial.number)

    def refuse(self, trial: Trial, why: str, margin: float = REFUSED_MARGIN) -> None:
        """Let a trial that passed count as missed, for this run and for all that go on from it."""
        below = min(margin, REFUSED_MARGIN)
        self.history.refuse(replace(trial, passed=False, margin=below, refused=why))

    def doubt(self, trial: Trial, now: Mapping[str, float]) -> None:
        """Notice that a score varies after all: a trial's model scores otherwise a second time."""
        self.yardstick.doubt(self.reference.candidate, trial.metrics, now)
        noise = self.yardstick.noise
        if self.scored is None or noise.deviation == self.scored.noise:
            return
        self.scored = replace(
            self.scored,
            metrics=self.yardstick.baseline,
            runs=noise.runs,
            noise=noise.deviation,
        )
        self.tell(self.yardstick.warning())


def without_refined(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials without those in whose place a refinement stands.

    The refinement is as small and as fast, and nearer to the float model on samples that it did not
    learn from: the noise of a score does not choose between the two. It takes the place where it
    passes, or its start does not.

    Args:
        trials: That compete.
    """
    known = {trial.recipe.digest: trial for trial in trials}
    replaced = set()
    for trial in trials:
        if not trial.is_gain or trial.refused:
            continue
        recipe = trial.recipe
        for count in range(len(recipe.recovery)):
            start = known.get(
                recipe.unrecovered.recovered(*recipe.recovery[:count]).digest
            )
            if start is not None and (trial.passed or not start.passed):
                replaced.add(start.number)
    return [trial for trial in trials if trial.number not in replaced]


def _without_spread(trial: Trial) -> Trial:
    """Return a trial whose figures are taken as they are."""
    figures = {
        name: replace(found, low=found.value, high=found.value)
        for name, found in trial.objectives.items()
    }
    return replace(trial, objectives=figures)
