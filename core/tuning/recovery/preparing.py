"""A run made ready to recover: where training runs, and where what is learned is kept."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from octavo.core.scoring.executor import Executor
from octavo.core.tuning.asked import Asked
from octavo.core.tuning.bench import Bench
from octavo.core.tuning.ground import Ground

from .kept_models import KeptModels, place_of
from .training import training_place


def prepare_recovery(
    bench: Bench,
    asked: Asked,
    ground: Ground,
    model: Any,
    executor: Executor | None,
    stack: ExitStack,
) -> None:
    """Say where training runs, and where what is learned is kept.

    Args:
        bench: The run's.
        asked: Its settings and plugins.
        ground: Its opened models.
        model: The float model as it was given.
        executor: The caller's own; None for the configured one.
        stack: Closes what is opened here.
    """
    place = training_place(asked.settings, executor)
    if place is not None:
        stack.callback(place.close)
    folder = place_of(bench.history.location, bench.history.name)
    for backend in bench.backends.values():
        recovering = backend.realizer.recovering
        recovering.run = place
        recovering.seed = asked.settings.seed
        is_own = backend.opened is ground.opened[0]
        given = model if is_own else None
        recovering.keeps = KeptModels(
            folder, backend.opened, given, asked.host, bench.tell
        )


__all__ = ["prepare_recovery"]
