"""Who is told how a run goes: the caller's callbacks, and a display where one is wanted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.core.errors import ConfigError, shown
from octavo.core.tuning.progress import Progress

from .display import ProgressDisplay
from .guarded_callbacks import Guarded
from .surfaces import in_notebook, on_terminal


def listeners(callbacks: Any, progress: bool | None = None) -> tuple[Progress, ...]:
    """Return the caller's callbacks, each guarded, and the display.

    Args:
        callbacks: A :class:`Progress` or several.
        progress: Whether a run shows itself: None does on a terminal and in a notebook, where no
            callbacks are given.

    Raises:
        ConfigError: If a callback is no :class:`Progress`.
    """
    is_one = isinstance(callbacks, Progress) or not isinstance(callbacks, Iterable)
    given = (callbacks,) if is_one else tuple(callbacks)
    if not all(hasattr(p, "finished") for p in given):
        raise ConfigError(
            f"callbacks is a sequence of octavo.Progress objects (got {shown(callbacks)})"
        )
    if progress is not None and not isinstance(progress, bool):
        raise ConfigError(f"progress is True, False or None (got {shown(progress)})")
    if progress is None:
        progress = not given and (in_notebook() or on_terminal())
    is_shown = any(isinstance(p, ProgressDisplay) for p in given)
    if progress and not is_shown:
        given = (*given, ProgressDisplay())
    return tuple(Guarded(p) for p in given)


__all__ = ["listeners"]
