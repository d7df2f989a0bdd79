"""The setting ``recover``: what is learned where no trial of a search reaches the goal."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from octavo.core.contract.recovery import recovery_settings
from octavo.core.values.scheme import PartChoice

from .alternatives import PartTable
from .specs import or_one


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
