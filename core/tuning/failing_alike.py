"""Where every candidate fails with the same error, the fault is not in the recipes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from octavo.core.values.trial import Trial

ALIKE = 5
"""So many candidates in a row that fail alike, and none that did not fail, end the run."""


def failing_alike(trials: Sequence[Trial]) -> str:
    """Return why the search ends where every candidate failed with the same error; else ''.

    Args:
        trials: Those that the strategy knows, in their order.
    """
    if len(trials) < ALIKE or any(t.state != "failed" for t in trials):
        return ""
    last = [_last_line(t.error) for t in trials[-ALIKE:]]
    if len({_without_numbers(error) for error in last}) > 1:
        return ""
    return f"every candidate failed, the last {ALIKE} alike: {last[-1]}"


def _last_line(text: str) -> str:
    """Return the last line of a traceback: the error itself."""
    return text.strip().splitlines()[-1] if text.strip() else "no error text"


def _without_numbers(error: str) -> str:
    """Return an error without what differs between two of the same: counts, times, addresses."""
    return re.sub(r"0x[0-9a-fA-F]+|\d+(\.\d+)?", "#", error)


__all__ = ["ALIKE", "failing_alike"]
