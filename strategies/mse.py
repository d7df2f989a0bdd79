"""Fallbacks ordered by an error: mse (at each op), mse_v2 (at the model's end, ranked again each step), hawq_v2 (curvature)."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.core.contract.strategy import RecipeSensitivity
from octavo.core.values.recipe import Recipe
from octavo.core.values.space import Unit

from . import HawqV2Config, MseConfig, MseV2Config
from .fallback import Choice, Fallback
from .losses import Transforms, offers, unit_losses
from .sequential import Search


class Mse(Fallback):
    """Everything quantized; then float for the op with the largest output error, the two largest, and so on."""

    config: MseConfig | HawqV2Config

    def search(self) -> Search:
        """Start, order once, fall back."""
        best = yield from self.start()
        if self.settled(best):
            return
        base, transforms = self.choice(best), best.recipe.transforms
        kind, remark = self.ordered_by()
        losses = unit_losses(self.problem, kind, base, transforms)
        order = sorted(self.quantized(base), key=lambda u: (-losses[u.name], u.parameters))
        self.conclude((yield from self.cumulative(base, order, transforms)))
        self.note += remark

    def ordered_by(self) -> tuple[str, str]:
        """Return the sensitivity that orders the ops, and what to say of it."""
        return "weight_error", ""


class HawqV2(Mse):
    """The order of HAWQ-V2 (Dong et al. 2020, eq. 3 and 4): mean Hessian trace times squared weight error.

    The trace is that of the model's output distance where a backend offers gradients, else that of each op's own output.
    """

    def ordered_by(self) -> tuple[str, str]:
        """Return the true trace where it is offered."""
        if offers(self.problem, "hessian_trace"):
            return "hessian_trace", " (ordered by the trace of the Hessian at the model's outputs)"
        return (
            "hessian",
            " (no backend offers gradients: ordered by the trace of the Hessian of each op's own output)",
        )


class MseV2(Fallback):
    """Take back the op whose reversal brings the model's outputs nearest to the float model's, until the goal is reached.

    Then ops that were taken back for nothing are quantized again, the least sensitive first, until one step fails.
    A ranking costs a run over a few batches for each candidate op and no evaluation.
    """

    config: MseV2Config

    def search(self) -> Search:
        """Revert until it passes, then re-quantize until it fails."""
        best = yield from self.start()
        if self.settled(best):
            return
        base, transforms = self.choice(best), best.recipe.transforms
        reverted: list[Unit] = []
        while not best.passed:
            left = [u for u in self.quantized(base) if u not in reverted]
            if len(left) <= 1:
                self.conclude(None)
                return
            recipes = [
                self.without(base, {u.name, *(r.name for r in reverted)}, transforms) for u in left
            ]
            far = self._distances(recipes, left, base, transforms)
            chosen = min(range(len(left)), key=lambda i: (far[i], i))
            reverted.append(left[chosen])
            best = yield from self.one(recipes[chosen])
        while reverted:
            recipes = [
                self.without(base, {r.name for r in reverted if r is not u}, transforms)
                for u in reverted
            ]
            far = self._distances(recipes, reverted, base, transforms, taken_back=False)
            chosen = min(range(len(reverted)), key=lambda i: (far[i], i))
            trial = yield from self.one(recipes[chosen])
            if not trial.passed:
                break
            best = trial
            reverted.pop(chosen)
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
        """Return how far each recipe, which takes one of the units back or quantizes it again, is from the float model."""
        service = self.problem.sensitivity
        if isinstance(service, RecipeSensitivity):
            return [float(d) for d in service.distances(recipes)]
        # Without whole-recipe distances the losses are taken to add up.
        losses = unit_losses(self.problem, "output_distance", base, transforms)
        return [-losses[u.name] if taken_back else losses[u.name] for u in units]
