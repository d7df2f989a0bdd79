"""Size against loss: the points between which a user chooses, measured and believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import Frozen
from octavo.core.values.settings import checked

Kind = Literal["trial", "believed", "uniform"]
"""What a point is: a trial; the least believed loss of its size; one width for all."""

Steps = list[tuple[int, ...]]
"""Picks, the smallest model's first: which of its choices each unit takes."""


@dataclass(frozen=True)
class FrontPoint:
    """One size of the model, and what that costs.

    Attributes:
        kind: ``trial``: it was measured. ``believed``: the least loss that is believed of its size.
            ``uniform``: one width for every op.
        size: Bytes of the file: measured, or believed.
        share: The same as a share of the float model's file.
        bits: Bits of a weight, a mean over the ops that may be quantized.
        loss: What it is believed to lose: the sum of what each op loses alone, by the sensitivities
            of the search; None where they are not known.
        sensitivity: Which sensitivity that is; '' where none is known.
        recipe: Makes the model: ``octavo.quantize_model(model, point.recipe, calibration=...)``.
        trial: Number of the trial that it is, or that measured it; 0 of the float model, None where
            none did.
        scores: Metric -> score of that trial.
        passed: Whether that trial reached the goal; None where none measured it.
        unbeaten: Whether no other point is known to be as small with less loss.
    """

    kind: Kind
    size: float
    share: float
    bits: float
    loss: float | None
    recipe: Recipe
    sensitivity: str = ""
    trial: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    passed: bool | None = None
    unbeaten: bool = False

    @property
    def name(self) -> str:
        """What it is, in two words."""
        if self.kind == "uniform":
            return f"uniform {_widths(self.recipe)}"
        if self.kind == "believed":
            return "believed"
        return f"trial {self.trial}" if self.trial else "float model"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "kind": self.kind,
            "size": self.size,
            "share": self.share,
            "bits": self.bits,
            "loss": self.loss,
            "recipe": self.recipe.to_json(),
            "sensitivity": self.sensitivity,
            "trial": self.trial,
            "scores": dict(self.scores),
            "passed": self.passed,
            "unbeaten": self.unbeaten,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> FrontPoint:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: If a field is missing or malformed.
        """
        row = checked(_Row, raw, "a stored point of the front is damaged")
        fields = {**row.model_dump(), "recipe": Recipe.from_json(row.recipe)}
        return cls(**fields)


class _Row(Frozen):
    """A point as JSON holds it. Files of later versions may hold more."""

    model_config = ConfigDict(extra="ignore")

    kind: Kind
    size: Annotated[float, Field(ge=0)]
    share: float
    bits: float
    loss: float | None = None
    recipe: dict[str, Any]
    sensitivity: str = ""
    trial: int | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    passed: bool | None = None
    unbeaten: bool = False


def _widths(recipe: Recipe) -> str:
    specs = (scheme.weight for scheme in recipe.schemes.values())
    bits = sorted({spec.bits for spec in specs if spec is not None})
    return f"{' and '.join(map(str, bits))} bits"


def with_unbeaten(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Return points by size, each with whether another one beats it.

    Points are compared by the believed loss, which all have in one unit. One whose loss is not
    known beats none and is beaten by none.

    Args:
        points: In any order.
    """
    in_order = sorted(points, key=_place)
    least = float("inf")
    found = []
    for point in in_order:
        is_unbeaten = point.loss is None or point.loss < least
        if point.loss is not None:
            least = min(least, point.loss)
        found.append(replace(point, unbeaten=is_unbeaten))
    return found


def _place(point: FrontPoint) -> tuple[float, float, int]:
    # Of points that are alike the measured one comes first.
    loss = float("inf") if point.loss is None else point.loss
    return point.size, loss, ("trial", "uniform", "believed").index(point.kind)


def cheapest_steps(losses: Sequence[np.ndarray], sizes: Sequence[np.ndarray]) -> Steps:
    """Return the choices of least loss, from the smallest model to the one without loss.

    Every point between two steps' sizes loses at least as much as the line through them: these are
    the solutions of the Lagrangian of a multiple-choice knapsack (Sinha and Zoltners 1979, "The
    multiple-choice knapsack problem", section 2), found by sorting, for all sizes at once. Each
    step changes one unit, and buys its loss at a higher price than the step before.

    Args:
        losses: For each unit, the loss of each choice; an infinite one is never taken.
        sizes: For each unit, the bytes of each choice.

    Returns:
        The index of each unit's choice, a tuple a step.
    """
    start: list[int] = []
    upgrades: list[tuple[float, int, int]] = []
    for unit, (loss, size) in enumerate(zip(losses, sizes, strict=True)):
        hull = _hull(np.asarray(loss, float), np.asarray(size, float))
        start.append(hull[0])
        for before, after in pairwise(hull):
            gain = float(loss[before] - loss[after])
            price = float(size[after] - size[before]) / gain
            upgrades.append((price, unit, after))
    picks = list(start)
    steps = [tuple(picks)]
    # A unit's own upgrades become dearer along its hull: sorted, each follows the one before.
    for _, unit, after in sorted(upgrades):
        picks[unit] = after
        steps.append(tuple(picks))
    return steps


def _hull(loss: np.ndarray, size: np.ndarray) -> list[int]:
    """Return a unit's choices on the lower convex hull, from the smallest on, losses falling."""
    known = [int(i) for i in np.lexsort((loss, size)) if np.isfinite(loss[i])]
    kept: list[int] = []
    for choice in known:
        if kept and loss[choice] >= loss[kept[-1]]:
            continue
        while len(kept) > 1 and _is_above(loss, size, kept[-2], kept[-1], choice):
            kept.pop()
        kept.append(choice)
    return kept


def _is_above(
    loss: np.ndarray, size: np.ndarray, first: int, middle: int, last: int
) -> bool:
    """Return whether the middle one of three choices lies on or above the line of the others."""
    whole = (loss[first] - loss[last]) * (size[middle] - size[first])
    own = (loss[first] - loss[middle]) * (size[last] - size[first])
    return bool(own <= whole)


__all__ = ["FrontPoint", "cheapest_steps", "with_unbeaten"]
