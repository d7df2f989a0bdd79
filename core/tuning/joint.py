"""One search over several backends: the strategies of the single spaces take turns."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.contract.strategy import WAIT, Strategy, Wait
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial


class JointStrategy:
    """Asks each backend's strategy in turn, and tells each the trials of its own backend.

    The backend is a dimension of the search, and no strategy has to know it: every built-in and every stranger's works
    over several backends. A backend whose strategy has nothing left drops out, and the others take its evaluations.
    """

    def __init__(self, strategies: Mapping[str, Strategy]) -> None:
        self._strategies = dict(strategies)
        self._open = list(strategies)
        self._next = 0

    def ask(self) -> Recipe | Wait | None:
        """Return the next backend's next recipe."""
        waiting = False
        for _ in range(len(self._open)):
            if not self._open:
                break
            name = self._open[self._next % len(self._open)]
            found = self._strategies[name].ask()
            if found is None:
                self._open.remove(name)
                continue
            self._next += 1
            if isinstance(found, Wait):
                waiting = True
                continue
            return found
        if self._open and not waiting:
            return self.ask()
        return WAIT if waiting else None

    def tell(self, trial: Trial) -> None:
        """Pass a trial on."""
        self._strategies[trial.recipe.backend].tell(trial)

    def explain(self) -> str:
        """Return each strategy's line."""
        lines = [(name, s.explain()) for name, s in self._strategies.items()]
        if len(lines) == 1:
            return lines[0][1]
        return "; ".join(f"{name}: {line}" for name, line in lines if line)
