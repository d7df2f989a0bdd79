"""The setting ``recover``: what is learned where no trial of a search reaches the goal."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from octavo.core.contract.recovery import recovery_settings
from octavo.core.values.scheme import PartChoice

from .specs import listed


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
    BeforeValidator(listed, json_schema_input_type=list[str | dict[str, Any]]),
    AfterValidator(_known),
]
"""Steps in order, each by name or by settings with ``kind``; one step need not be a list."""
