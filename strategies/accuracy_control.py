"""Greedy accuracy control: take back the unit whose reversal helps most.

Where it made things worse, undo and rank again. NNCF's algorithm (Quantization with accuracy
control) with the model's outputs as the ranking score, so that a ranking costs runs over a few
batches and no evaluation.
"""

from __future__ import annotations

from octavo.core.contract.strategy import Foresight, RecipeSensitivity
from octavo.core.values.space import Unit
from octavo.strategies.beliefs.losses import Transforms, unit_losses

from . import AccuracyControlConfig
from .fallback import Choice, Fallback
from .sequential import Search


class AccuracyControl(Fallback):
    """About 1 + k evaluations for k units taken back."""

    config: AccuracyControlConfig

    def search(self) -> Search:
        """Revert one unit after the other."""
        self.ahead = Foresight(probes=True)
        best = yield from self.start()
        if self.settled(best):
            return
        base, transforms = self.choice(best), best.recipe.transforms
        most = len(self.quantized(base)) - 1
        reverted: list[str] = []
        self.ahead = Foresight(probes_each=True)
        ranking = self._ranked(base, reverted, transforms)
        is_fresh = True
        while not best.passed:
            if (not ranking and is_fresh) or len(reverted) >= most:
                self.conclude(None)
                return
            if not ranking:
                ranking = self._ranked(base, reverted, transforms)
                is_fresh = True
                continue
            unit = ranking.pop(0)
            trial = yield from self.one(
                self.without(base, {unit.name, *reverted}, transforms)
            )
            if trial.state != "failed" and trial.margin >= best.margin:
                reverted.append(unit.name)
                best = trial
                is_fresh = False
            elif not is_fresh:
                # The order was made before the last reversals, and no longer holds.
                ranking = [
                    u for u in self._ranked(base, reverted, transforms) if u is not unit
                ]
                is_fresh = True
        self.conclude(best)

    def _ranked(
        self, base: Choice, reverted: list[str], transforms: Transforms
    ) -> list[Unit]:
        """Return the units that may be taken back beside those that were, what helps most first."""
        left = [u for u in self.quantized(base) if u.name not in reverted]
        service = self.problem.sensitivity
        if isinstance(service, RecipeSensitivity):
            recipes = [
                self.without(base, {u.name, *reverted}, transforms) for u in left
            ]
            far = [float(d) for d in service.distances(recipes)]
        else:
            losses = unit_losses(self.problem, "output_distance", base, transforms)
            far = [-losses[u.name] for u in left]
        order = sorted(range(len(left)), key=far.__getitem__)
        return [left[i] for i in order]
