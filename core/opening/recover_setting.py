"""The setting ``recover``: what is learned where no trial of a search reaches the goal."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from octavo.core.contract.recovery import QAT, after_rounding, recovery_settings
from octavo.core.values.scheme import PartChoice

from .alternatives import PartTable
from .specs import listed, or_one

AUTO = "auto"


def _known(steps: tuple[PartChoice, ...]) -> tuple[PartChoice, ...]:
    """Look at each step.

    Raises:
        ConfigError: If there is no such step, or it has no such setting.
    """
    for step in steps:
        recovery_settings(step)
    return steps


Recover = Annotated[
    tuple[PartChoice, ...],
    or_one(PartTable, or_none=False),
    AfterValidator(_known),
]
"""Steps in order, each by name or by settings with ``kind``; one step need not be a list."""


def _refines(value: Any) -> Any:
    """Return what is written as one step as a list of one; ``auto`` is no step."""
    return value if value == AUTO else listed(value)


def _of_a_winner(value: Any) -> Any:
    """Look at the steps that a winner learns by.

    Raises:
        ValueError: If one is ``qat``: it makes another model, not a nearer one.
        ConfigError: As for ``recover``.
    """
    if value == AUTO:
        return value
    if any(step.kind == QAT for step in value):
        raise ValueError(
            "'qat' trains by a function of your own and refines no winner: name it in recover"
        )
    return tuple(map(after_rounding, _known(value)))


Refine = Annotated[
    Literal["auto"] | tuple[PartChoice, ...],
    BeforeValidator(_refines, json_schema_input_type=PartTable | list[PartTable]),
    AfterValidator(_of_a_winner),
]
"""``auto``, or steps as of :data:`Recover`."""
