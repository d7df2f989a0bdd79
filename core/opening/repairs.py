"""Low-rank repairs in what ops are asked to take: left out where the backend has none for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from octavo.core.contract.adapter import Opened
from octavo.core.values.scheme import OpScheme
from octavo.core.values.sizes import repairs_of, without_repairs
from octavo.core.values.space import Unit

Choices = Mapping[str, tuple[OpScheme, ...]]


def with_repairs_that_run(opened: Opened, choices: Choices) -> tuple[Choices, str]:
    """Leave repairs out of what ops may take where the backend cannot carry them out.

    Args:
        opened: The model on its backend.
        choices: Op -> what it may take.

    Returns:
        Op -> its choices, and why some have no repair; empty where all have what is asked for.
    """
    kept: dict[str, tuple[OpScheme, ...]] = {}
    reasons: dict[str, None] = {}
    for name, own in choices.items():
        op = opened.view.by_name[name]
        carried = [opened.capability.repairable(op, scheme) for scheme in own]
        kept[name] = tuple(dict.fromkeys(scheme for scheme, _ in carried))
        reasons.update((why, None) for _, why in carried if why)
    return kept, "; ".join(reasons)


def repairs_in(schemes: Iterable[OpScheme]) -> bool:
    """Return whether any of some schemes asks for a repair."""
    return any(repairs_of(scheme) for scheme in schemes)


def choice_that_runs(
    opened: Opened, unit: Unit, choice: OpScheme
) -> tuple[OpScheme, str]:
    """Return a unit's choice without the repairs that one of its ops cannot take, and why."""
    for name, scheme in unit.schemes(choice).items():
        _, why = opened.capability.repairable(opened.view.by_name[name], scheme)
        if why:
            return without_repairs(choice), why
    return choice, ""
