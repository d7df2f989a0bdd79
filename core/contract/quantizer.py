"""What carries recipes out on one model, as its users see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from octavo.core.numerics.channels import Change
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice
from octavo.core.values.space import TuningSpace

from .adapter import Opened, Session
from .candidate import Candidate, OpParameters


class Quantizer(Protocol):
    """From a recipe to parameters and candidates.

    :class:`octavo.core.quantizing.realize.Realizer` is one.

    Attributes:
        opened: The model.
        space: What recipes are points of.
    """

    opened: Opened
    space: TuningSpace

    def parameters(self, recipe: Recipe) -> Mapping[str, OpParameters]:
        """Return the parameters of every op that is not float."""

    def candidate(self, recipe: Recipe, *, draft: bool = False) -> Candidate:
        """Return the model with a recipe carried out.

        Args:
            recipe: What to quantize.
            draft: Make it for a runner of its session alone, see ``Session.draft``.
        """

    def session(self, transforms: tuple[PartChoice, ...] = ()) -> Session:
        """Return the float session after ``transforms``."""

    def change(self, op: str, value: str, transforms: tuple[PartChoice, ...]) -> Change:
        """Return what ``transforms`` do to a value of the original model before an op meets it."""
