"""Does the score point the right way?

A model that is broken on purpose must not be called better.
"""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.errors import ConfigError, StoreError
from octavo.core.quantizing.realize import Realizer
from octavo.core.scoring.broken_model import (
    CHEAP,
    SHUFFLES,
    broken_model,
    called_better,
    refusal,
)

from .bench import Bench


def check_direction(bench: Bench, realizer: Realizer, seed: int) -> None:
    """Score a broken model, where evaluations are cheap, and refuse a score that calls it better.

    Args:
        bench: The run's.
        realizer: Of the model's own backend, calibrated.
        seed: Of the shuffles.

    Raises:
        ConfigError: If it does.
    """
    history = bench.history
    is_asked_for = getattr(bench.criterion.config, "guard", False)
    if not is_asked_for or history.fact("guard:done"):
        return
    if bench.yardstick.seconds_each > CHEAP:
        history.keep("guard:done", True)
        return
    if history.fact("guard:began") and not history.fact("guard:refused"):
        # It may be the broken model that crashed the process: once is enough.
        bench.tell(
            "the check with a broken model ended the last run, and is left out of this one"
        )
        return
    history.keep("guard:began", True)
    why = _refusal(bench, realizer, seed)
    if not why:
        history.keep("guard:done", True)
        return
    history.keep("guard:refused", True)
    raise ConfigError(why)


def _refusal(bench: Bench, realizer: Realizer, seed: int) -> str:
    """Return why the score is refused; '' where one broken model is not called better."""
    why = ""
    for number in range(SHUFFLES):
        found = _broken_scores(bench, realizer, seed + number)
        if found is None or not called_better(bench.yardstick, found[1]):
            return ""
        why = refusal(found[0], bench.yardstick, found[1])
    return why


def _broken_scores(
    bench: Bench, realizer: Realizer, seed: int
) -> tuple[str, Mapping[str, float]] | None:
    """Return the op that was broken and the scores; None where there is no such model or score."""
    try:
        made = broken_model(realizer, seed)
        if made is None:
            return None
        op, candidate = made
        return op, bench.scoring.full(candidate).metrics
    except StoreError:
        raise
    except Exception:
        # A broken model may overflow, or a recipe fail as any may: that says nothing of the
        # direction, and trials tell it.
        return None
