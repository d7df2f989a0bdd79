"""The setting ``recover``: what is learned where no trial of a search reaches the goal."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from octavo.core.contract.recovery import recovery_settings
from octavo.core.values.scheme import PartChoice


def _as_written(value: Any) -> Any:
    """Take one step for a list of one."""
    return (value,) if isinstance(value, (str, dict)) else value


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
    BeforeValidator(_as_written, json_schema_input_type=list[str | dict[str, Any]]),
    AfterValidator(_known),
]
"""Steps in order, each by name or by settings with ``kind``; one step need not be a list."""
