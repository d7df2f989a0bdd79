"""Size against loss: the points between which a user chooses, measured and believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import Frozen
from octavo.core.values.settings import checked

Kind = Literal["trial", "believed", "uniform"]
"""What a point is: a trial; the least believed loss of its size; one width for all."""


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


__all__ = ["FrontPoint", "with_unbeaten"]
