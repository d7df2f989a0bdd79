"""Fallbacks ordered by an error: of each op, of the model's outputs, or by curvature."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.core.contract.strategy import Foresight, RecipeSensitivity
from octavo.core.values.recipe import Recipe
from octavo.core.values.space import Unit
from octavo.core.values.trial import Trial
from octavo.strategies.beliefs.losses import Transforms, offers, unit_losses

from . import HawqV2Config, MseConfig, MseV2Config
from .fallback import Choice, Fallback
from .sequential import Search


class Mse(Fallback):
    """Everything quantized, then ever more ops in float: those with the largest output errors."""

    config: MseConfig | HawqV2Config

    def search(self) -> Search:
        """Start, order once, fall back."""
        self.ahead = Foresight(probes=True)
        best = yield from self.start()
        if self.settled(best):
            return
        base, transforms = self.choice(best), best.recipe.transforms
        kind, remark = self.ordered_by()
        self.ahead = Foresight(len(self.quantized(base)))
        losses = unit_losses(self.problem, kind, base, transforms)
        order = sorted(
            self.quantized(base), key=lambda u: (-losses[u.name], u.parameters)
        )
        self.conclude((yield from self.cumulative(base, order, transforms)))
        self.note += remark

    def ordered_by(self) -> tuple[str, str]:
        """Return the sensitivity that orders the ops, and what to say of it."""
        return "weight_error", ""


class HawqV2(Mse):
    """The order of HAWQ-V2: mean Hessian trace times squared weight error.

    Dong et al. 2020, eq. 3 and 4. The trace is that of the model's output distance where a backend
    offers gradients, else that of each op's own output.
    """

    def ordered_by(self) -> tuple[str, str]:
        """Return the true trace where it is offered."""
        if offers(self.problem, "hessian_trace"):
            return (
                "hessian_trace",
                " (ordered by the trace of the Hessian at the model's outputs)",
            )
        return (
            "hessian",
            " (no backend offers gradients: ordered by the trace of the Hessian "
            "of each op's own output)",
        )


class MseV2(Fallback):
    """Take back the op whose reversal brings the outputs nearest to the float model's.

    Until the goal is reached. Then ops that were taken back for nothing are quantized again, the
    least sensitive first, until one step fails. A ranking costs a run over a few batches for each
    candidate op and no evaluation.
    """

    config: MseV2Config

    def search(self) -> Search:
        """Revert until it passes, then re-quantize until it fails."""
        self.ahead = Foresight(probes=True)
        best = yield from self.start()
        if self.settled(best):
            return
        base, transforms = self.choice(best), best.recipe.transforms
        reverted: list[Unit] = []
        self.ahead = Foresight(probes_each=True)
        while not best.passed:
            left = [u for u in self.quantized(base) if u not in reverted]
            if len(left) <= 1:
                self.conclude(None)
                return
            names = {u.name for u in reverted}
            recipes = [self.without(base, {u.name, *names}, transforms) for u in left]
            far = self._distances(recipes, left, base, transforms)
            nearest = far.index(min(far))
            reverted.append(left[nearest])
            best = yield from self.one(recipes[nearest])
        yield from self._quantize_again(best, base, reverted)

    def _quantize_again(
        self, best: Trial, base: Choice, reverted: list[Unit]
    ) -> Search:
        """Give up reversals one by one, the least sensitive first, until one step fails."""
        transforms = best.recipe.transforms
        while reverted:
            names = {u.name for u in reverted}
            recipes = [
                self.without(base, names - {u.name}, transforms) for u in reverted
            ]
            far = self._distances(recipes, reverted, base, transforms, taken_back=False)
            nearest = far.index(min(far))
            trial = yield from self.one(recipes[nearest])
            if not trial.passed:
                break
            best = trial
            reverted.pop(nearest)
        self.conclude(best)

    def _distances(
        self,
        recipes: Sequence[Recipe],
        units: Sequence[Unit],
        base: Choice,
        transforms: Transforms,
        *,
        taken_back: bool = True,
    ) -> list[float]:
        """Return how far each recipe is from the float model.

        Args:
            recipes: Each takes one of the units back, or quantizes it again.
            units: One for each recipe.
            base: Everything quantized.
            transforms: Those of the recipes.
            taken_back: Whether the units are taken back.
        """
        service = self.problem.sensitivity
        if isinstance(service, RecipeSensitivity):
            return [float(d) for d in service.distances(recipes)]
        # Without whole-recipe distances the losses are taken to add up.
        losses = unit_losses(self.problem, "output_distance", base, transforms)
        sign = -1 if taken_back else 1
        return [sign * losses[u.name] for u in units]
