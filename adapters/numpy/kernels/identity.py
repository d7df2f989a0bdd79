"""What was made from an object, kept as long as the object lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any


class IdentityCache:
    """Keyed by identity, holds no strong reference: arrays are not hashable, and equal is not the same."""

    def __init__(self) -> None:
        self._table: dict[int, tuple[weakref.ref[Any], dict[Hashable, Any]]] = {}

    def get(self, owner: Any, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return ``make()``'s result for (owner, key), made once in the owner's life."""
        entry = self._table.get(id(owner))
        if entry is None or entry[0]() is not owner:
            number = id(owner)
            entry = self._table[number] = (
                weakref.ref(owner, lambda _: self._table.pop(number, None)),
                {},
            )
        if key not in entry[1]:
            entry[1][key] = make()
        return entry[1][key]
