"""One sensitivity service for each backend of a run, and the file that keeps their scores."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path

from octavo.core.errors import StoreError
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.sensitivity.shared import lend_traces

from .bench import Bench

BATCHES = 2  # of the calibration data, that every probe is run on


def sensitivity_services(
    bench: Bench, path: str | Path | None, seed: int
) -> dict[str, SensitivityService]:
    """Return the service of each backend that has a choice.

    Args:
        bench: The run's.
        path: Holds the scores of earlier runs, one file for each backend (``NAME.BACKEND.json``).
        seed: Of what is drawn for gradients.
    """
    found = {}
    for name, backend in bench.backends.items():
        if not backend.space.tunable:
            continue
        kept = Path(path).with_suffix(f".{name}.json") if path is not None else None
        found[name] = SensitivityService(
            backend.opened,
            backend.realizer,
            tuple(islice(backend.data, BATCHES)),
            kept,
            note=bench.tell,
            seed=seed,
            watched=partial(bench.phases.probes, about=f"on {name}"),
        )
    lend_traces(tuple(found.values()))
    return found


def keep_scores(service: SensitivityService, bench: Bench) -> None:
    """Write the scores.

    That they cannot be written costs the next run its start, and not this one its result.
    """
    try:
        service.save()
    except StoreError as error:
        bench.tell(f"the sensitivities are not kept: {error}")
