"""The setting ``recover``: what is learned where no trial of a search reaches the goal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from octavo.core.contract.recovery import (
    DISTILLATION,
    QAT,
    RECONSTRUCTION,
    recovery_settings,
)
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


AFTER_ROUNDING: Mapping[str, Mapping[str, Any]] = {
    DISTILLATION: {"rate": 0, "scale_rate": 0.001, "half": False},
    RECONSTRUCTION: {"hold_back": True},
}
"""Kind -> settings of a step that begins where an algorithm has ended, where nobody says others.

Distillation: moving codes undoes what the algorithm won, and products in bfloat16 are coarser than
what is left to be learned. Measured on the small Llama, 24 steps of 4 x 256 tokens, held-out
divergence: gptq at 2.5 bits -13 % at a rate of 0.0005, -18 % at 0.002, nothing at 0.005; gptq at
3.5 bits -12 % at 0.001; rtn at 2.5 bits -34 % at 0.002.
"""


def after_rounding(step: PartChoice) -> PartChoice:
    """Return a step with the settings that it has where it refines what an algorithm made."""
    options = {**AFTER_ROUNDING.get(step.kind, {}), **dict(step.options)}
    return PartChoice(kind=step.kind, options=tuple(sorted(options.items())))


Refine = Annotated[
    Literal["auto"] | tuple[PartChoice, ...],
    BeforeValidator(_refines, json_schema_input_type=PartTable | list[PartTable]),
    AfterValidator(_of_a_winner),
]
"""``auto``, or steps as of :data:`Recover`."""
