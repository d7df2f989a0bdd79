"""Whether a search is followed by recovery, and what that leaves of the run's time to it."""

from __future__ import annotations

from octavo.core.tuning.bench import Bench
from octavo.core.tuning.progress import RECOVERY
from octavo.core.values.recipe import Recipe

from .ladder import Ladder, LadderPlan

RECOVERY_SHARE = 1 / 3
"""Of a run's time limit, what the search leaves to recovery while no trial passes: learning costs
much more than a trial, and a search would use any time that there is."""


class AfterSearch:
    """Says when recovery follows the search of a loop.

    Args:
        bench: The run's.
        plan: What is learned where no trial of the search passes; empty for nothing.

    Attributes:
        ladder: What asks for recoveries; None before they begin.
    """

    def __init__(self, bench: Bench, plan: LadderPlan) -> None:
        self._bench = bench
        self._plan = plan
        self._why_searched = ""
        self.ladder: Ladder | None = None

    @property
    def may_come(self) -> bool:
        """Whether recovery would follow if the search ended now."""
        if not self._plan or self.ladder is not None or self._bench.clock.ran_out:
            return False
        return not any(t.passed for t in self._bench.trials if not t.recipe.recovery)

    def begin(self, why_searched: str) -> Ladder:
        """Return what asks for recoveries.

        Args:
            why_searched: Why the search ended.
        """
        self._why_searched = why_searched
        self.ladder = Ladder(self._bench, self._plan)
        for why in self.ladder.unsuited:
            self._bench.tell(why)
        return self.ladder

    def told(self, reason: str) -> str:
        """Return why recovery ended, with why the search did before it."""
        if self.ladder is None or not self._why_searched:
            return reason
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
        if not self.may_come or clock.limit is None:
            return ""
        if clock.left > RECOVERY_SHARE * clock.limit:
            return ""
        return f"two thirds of the time limit of {clock.limit:g} s were used up, and none passes"


__all__ = ["AfterSearch"]
