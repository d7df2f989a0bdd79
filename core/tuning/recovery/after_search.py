"""Whether a search is followed by learning, and what that leaves of the run's time to it."""

from __future__ import annotations

from octavo.core.tuning.bench import Bench
from octavo.core.tuning.progress import RECOVERY
from octavo.core.values.recipe import Recipe

from .ladder import Ladder, LadderPlan
from .refining import Refiner

RECOVERY_SHARE = 1 / 3
"""Of a run's time limit, what the search leaves to recovery while no trial passes: learning costs
much more than a trial, and a search would use any time that there is."""

REFINEMENT_SHARE = 1 / 4
"""Of a run's time limit, what must be left for a winner to be refined: how long learning takes is
not known before."""


class AfterSearch:
    """Says when recovery or refinement follows the search of a loop.

    Where no trial passes, the closest are recovered; else the winner is refined.

    Args:
        bench: The run's.
        plan: What is learned where no trial of the search passes, and of a winner.

    Attributes:
        ladder: What asks for recipes that learn; None before they begin.
    """

    def __init__(self, bench: Bench, plan: LadderPlan) -> None:
        self._bench = bench
        self._plan = plan
        self._why_searched = ""
        self._refiner: Refiner | None = None
        self.ladder: Ladder | Refiner | None = None

    @property
    def may_come(self) -> bool:
        """Whether learning would follow if the search ended now."""
        return self._may_recover or self._may_refine

    @property
    def _may_recover(self) -> bool:
        if not self._plan or self.ladder is not None or self._bench.clock.ran_out:
            return False
        return not any(t.passed for t in self._bench.trials if not t.recipe.recovery)

    @property
    def _may_refine(self) -> bool:
        """Whether a winner would be refined: what that takes is asked of the last trials."""
        clock = self._bench.clock
        wants = self._plan.refine is None or bool(self._plan.refine)
        if not wants or self.ladder is not None:
            return False
        if clock.limit is not None and clock.left < REFINEMENT_SHARE * clock.limit:
            return False
        if self._refiner is None or self._refiner.seen != len(self._bench.trials):
            self._refiner = Refiner(self._bench, self._plan)
        return bool(self._refiner.steps or self._refiner.unsuited)

    def begin(self, why_searched: str) -> Ladder | Refiner:
        """Return what asks for recipes that learn.

        Args:
            why_searched: Why the search ended.
        """
        self._why_searched = why_searched
        if self._may_recover or self._refiner is None:
            self.ladder = Ladder(self._bench, self._plan)
        else:
            self.ladder = self._refiner
        for why in self.ladder.unsuited:
            self._bench.tell(why)
        return self.ladder

    def told(self, reason: str) -> str:
        """Return why recovery ended, with why the search did before it."""
        if self.ladder is None or not self._why_searched:
            return reason
        if not reason:
            return self._why_searched
        return f"{self._why_searched}; then {reason}"

    def is_own(self, recipe: Recipe) -> bool:
        """Return whether a recipe is of the part of the run that goes on: search or recovery."""
        return bool(recipe.recovery) == (self.ladder is not None)

    def expect(self) -> None:
        """Say what recovery is believed to take: nothing once a trial passes, else that is open."""
        if self._plan and self.ladder is None:
            is_reached = self._bench.best() is not None
            self._bench.phases.expect(RECOVERY, 0.0 if is_reached else None)

    def is_over(self) -> None:
        """Say that no recovery is to come: the search has ended for good."""
        if self._plan:
            self._bench.phases.expect(RECOVERY, 0.0)

    def why_search_ends(self) -> str:
        """Return why the search leaves the rest of the time to recovery; '' while it goes on."""
        clock = self._bench.clock
        if not self._may_recover or clock.limit is None:
            return ""
        if clock.left > RECOVERY_SHARE * clock.limit:
            return ""
        return f"two thirds of the time limit of {clock.limit:g} s were used up, and none passes"


__all__ = ["AfterSearch"]
