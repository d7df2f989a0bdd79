"""How probes are told of as they go on, and may be ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Watched = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""Is told how many probes or draws there will be, and gives what is called before each of them.

That may end them by what it raises, which is no ``Exception``.
"""


def unwatched(count: int) -> AbstractContextManager[Callable[[], None]]:
    """Watch nothing."""
    return nullcontext(_nothing)


def _nothing() -> None:
    pass
