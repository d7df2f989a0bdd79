"""What a strategy is given and what it must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pydantic import Field

from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import TuningSpace
from octavo.core.values.trial import Trial

from .parts import PartConfig


class Sensitivity(Protocol):
    """How much the model suffers when one unit takes one scheme.

    Asked for lazily, computed once, cached.
    """

    def __call__(
        self, kind: str, pairs: Sequence[tuple[str, OpScheme]]
    ) -> Sequence[float]:
        """Return one loss >= 0 for each (unit name, scheme); higher hurts more.

        Args:
            kind: ``weight_error`` or ``hessian`` (cheap, from weights and statistics) or
                ``output_distance`` (one forward pass over a few batches each); ``gradient`` and
                ``hessian_trace`` where the backend offers gradients. A
                :class:`RecipeSensitivity` also takes ``auto``: what it prefers.
            pairs: What to score.
        """


@runtime_checkable
class RecipeSensitivity(Sensitivity, Protocol):
    """A service that can also judge whole recipes without the score function."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can be asked for here."""

    @property
    def preferred(self) -> str:
        """The best of them here, which ``auto`` stands for."""

    def price(
        self,
        kind: str,
        pairs: Sequence[tuple[str, OpScheme]],
        transforms: tuple[PartChoice, ...] = (),
    ) -> int:
        """Return how many runs of a batch asking for these would still cost; 0 for what is known.

        A backward pass counts as the runs that it takes about as long as.
        """

    def around(self, recipe: Recipe) -> Sensitivity:
        """Return the losses of units as changes of a whole ``recipe``, not of the float model.

        Asked of it, whatever the kind: distance(recipe with the unit under the scheme) less
        distance(recipe with the unit in float), and never below 0.
        """

    def interaction(self, recipe: Recipe) -> float:
        """Return the measured distance of a whole recipe over the sum of its units' losses.

        Near 1 where losses add up; 1 where they are all 0.
        """

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        """Return the output distance of each whole recipe."""

    def under(self, transforms: tuple[PartChoice, ...]) -> Sensitivity:
        """Return the service for units of a model to which the transforms were applied first."""


class SuggestsTransforms(PartConfig):
    """Settings of a strategy that compares model-wide transforms without being told to.

    Attributes:
        suggested: Op type -> transform that the space offers where the configuration names none: on
            backends that rescale, for models with such ops whose inputs can be rescaled and may be
            quantized.
    """

    suggested: dict[str, PartChoice] = Field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """All that a strategy may know. It never sees a model or data.

    Attributes:
        space: Where to search.
        objectives: Names of what is minimised, most important first.
        seed: The only source of randomness.
        sensitivity: The service, or None where there is none (then order by parameters).
        stop_at_goal: The search ends at the first passing recipe.
        max_trials: Evaluations that there are, at most; None where that is not known.
        budgets: Hard limits by name (``bits``, ``size``, ``latency``). A trial that overran one has
            not passed, and its ``over`` says by how much.
        worth: Returns how many runs of a batch sensitivities are worth, beside evaluations that
            take their time too; None where that is not known.
        earlier: Trials of runs with other goals or budgets on the same model, data and score, each
            with its margin to this run's goal. They say how much recipes lose, and are no
            candidates.
        float_size: Bytes of the float model's saved files, which ``budgets.size`` is a share of; 0
            where that is not measured.
        settled: Returns what the backend carries out of a recipe: the same, without the units that
            their neighbours' schemes leave in float. Whatever is asked for is tried in this form,
            and what it shares with another recipe is answered by that one's trial.
    """

    space: TuningSpace
    objectives: tuple[str, ...] = ()
    seed: int = 0
    sensitivity: Sensitivity | None = None
    stop_at_goal: bool = False
    budgets: Mapping[str, float] = field(default_factory=dict)
    max_trials: int | None = None
    worth: Callable[[], float | None] = lambda: None
    earlier: tuple[Trial, ...] = ()
    float_size: float = 0.0
    settled: Callable[[Recipe], Recipe] = lambda recipe: recipe


@dataclass(frozen=True)
class Foresight:
    """What a strategy believes that it will still ask for: the time that is left is told by it.

    Attributes:
        trials: Further recipes, at most; None where only the run's limit is known.
        probes: Whether sensitivities may be asked for, beside those that are being found out now:
            how long they take is not known before.
        probes_each: Whether they are asked for again before each further recipe or so: then they
            count as a part of its trial.
    """

    trials: int | None = None
    probes: bool = False
    probes_each: bool = False


@dataclass(frozen=True)
class Believed:
    """One point of the front of size and loss: no other recipe is believed to beat it in both.

    Attributes:
        recipe: What takes so many bytes.
        bytes: Of the weights that may be quantized, as the file holds them.
        bits: The same for each weight, on average.
        loss: What the recipe is believed to lose, in the unit of the sensitivities.
    """

    recipe: Recipe
    bytes: float
    bits: float
    loss: float


class Strategy(ABC):
    """A search over a space: the life of a recipe is ``ask`` -> evaluated by the loop -> ``tell``.

    The rules, checked by ``octavo.core.testing.conformance``:

    * ``ask`` returns a recipe of the space, or None when nothing is left that could pay.
    * ``ask`` may be called again before ``tell``: recipes not yet told are pending, and are not
      returned again. A strategy that cannot go on before an answer returns :data:`WAIT`.
    * ``tell`` takes every trial that was asked for, failed ones included. A recipe whose result is
      known already is answered from the history, marked ``reused``.
    * The same problem and the same sequence of calls give the same recipes, in any process. The
      loop rebuilds a strategy after a crash by asking and telling its history again.

    Args:
        config: The card's settings.
        problem: Where to search, and for what.
    """

    def __init__(self, config: PartConfig, problem: Problem) -> None:
        self.config = config
        self.problem = problem

    @abstractmethod
    def ask(self) -> Recipe | Wait | None:
        """Return the next recipe, WAIT, or None at the end."""

    @abstractmethod
    def tell(self, trial: Trial) -> None:
        """Take a finished trial."""

    def explain(self) -> str:
        """Say in one line where the search stands or why it ended, for the log and the report."""
        return ""

    def narrowed(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        """Return the trials among which the run's objectives, or the closeness to its goal, decide.

        All of them, save where a strategy knows better: one that seeks the least loss within a
        budget leaves those that it believes to lose least, for scores that differ by less than
        their noise decide nothing.

        Args:
            trials: Those that pass; where none does, those that keep the budgets.
        """
        return trials

    def front(self) -> Sequence[Believed]:
        """Return what is believed of loss by size, from the fewest bytes on; () where nothing is.

        Nothing is asked for: what the search did not find out is not there.
        """
        return ()

    def foresee(self) -> Foresight:
        """Return what may still be asked for; it changes nothing and takes no time.

        A strategy that asks for sensitivities says so here until it has: before that, how long the
        rest takes is not known, and is told as not known.
        """
        return Foresight()


class Wait:
    """Type of :data:`WAIT`."""

    def __repr__(self) -> str:
        return "WAIT"


WAIT = Wait()
"""Returned by ``ask`` while pending trials must be told first."""
