"""Alternatives as a configuration writes them: each one part, or a list of parts in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from octavo.core.errors import ConfigError
from octavo.core.values.scheme import PartChoice

PartTable = str | dict[str, Any]
"""A part as it is written: its name, or its settings with ``kind``."""

AlternativeTable = PartTable | list[PartTable]
"""An alternative as it is written: one part, or several in order."""

Chain = tuple[PartChoice, ...]
"""Parts that follow each other."""


def _alone(raw: Any) -> Any:
    """Return a list of one part as that part: the two are one alternative."""
    is_list = isinstance(raw, (list, tuple))
    if is_list and not raw:
        raise ValueError(
            "an empty list is no alternative: leave it out (recipes without are always tried)"
        )
    for part in raw if is_list else (raw,):
        if not isinstance(part, (str, Mapping, PartChoice)):
            raise ValueError(
                "an alternative is a name, a table of settings with kind, or a list of these in "
                "order"
            )
    return raw[0] if is_list and len(raw) == 1 else raw


Alternative = Annotated[PartChoice | Chain, BeforeValidator(_alone)]
"""One part, or several in order."""


def as_chain(alternative: PartChoice | Chain) -> Chain:
    """Return an alternative as parts in order."""
    return (alternative,) if isinstance(alternative, PartChoice) else alternative


def only_one(setting: str, alternatives: Iterable[PartChoice | Chain]) -> Chain:
    """Return the one alternative of a setting, () for none: nothing here compares several.

    Args:
        setting: Its name.
        alternatives: What a configuration names.

    Raises:
        ConfigError: If there are several; the message shows how each meaning is written.
    """
    chains = [as_chain(alternative) for alternative in alternatives]
    if len(chains) < 2:
        return chains[0] if chains else ()
    every = [str(part) for chain in chains for part in chain]
    first = [str(part) for part in chains[0]]
    in_order = f"{setting} = [{_as_list(every)}]"
    alone = f"{setting} = [{_as_list(first) if len(first) > 1 else _quoted(first[0])}]"
    raise ConfigError(
        f"{setting} names {len(chains)} alternatives, and nothing here compares them: write "
        f"{in_order} for all in that order, {alone} for one of them, or let octavo.autotune "
        "search among them"
    )


def _as_list(names: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, names))}]"


def _quoted(name: str) -> str:
    return f'"{name}"'
