"""What was made from an object, kept as long as the object lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any


class IdentityCache:
    """Keyed by identity; arrays are not hashable, and equal is not the same.

    It holds no strong reference to the objects.
    """

    def __init__(self) -> None:
        self._table: dict[int, tuple[weakref.ref[Any], dict[Hashable, Any]]] = {}

    def get(self, owner: Any, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return ``make()``'s result for (owner, key), made once in the owner's life."""
        number = id(owner)
        entry = self._table.get(number)
        # The number of an object that is gone may be another object's now.
        if entry is None or entry[0]() is not owner:
            alive = weakref.ref(owner, lambda _: self._table.pop(number, None))
            entry = self._table[number] = (alive, {})
        made = entry[1]
        if key not in made:
            made[key] = make()
        return made[key]
