"""What several layers make alike of one value, made once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

Tensor = torch.Tensor


class Memo:
    """Remembers what was made of one tensor, for the layers that read it one after the other.

    Query, key and value do.

    Args:
        readers: How many layers read it; after the last one the result is let go.
    """

    def __init__(self, readers: int) -> None:
        self.readers = readers
        self._entry: tuple[weakref.ref[Tensor], int, Any, list[int]] | None = None

    def get(self, x: Tensor, make: Callable[[Tensor], Any]) -> Any:
        """Return ``make(x)``, made once for one state of one tensor object."""
        if torch.compiler.is_compiling() or x.is_inference():
            return make(x)  # no version to tell that x was changed in place
        entry = self._entry
        if entry is not None and entry[0]() is x and entry[1] == x._version:
            entry[3][0] -= 1
            if entry[3][0] <= 0:
                self._entry = None
            return entry[2]
        made = make(x)
        self._entry = (weakref.ref(x), x._version, made, [self.readers - 1])
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return (Memo, (self.readers,))
