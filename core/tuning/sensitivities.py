"""One sensitivity service for each backend of a run, and the file that keeps their scores."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path

from octavo.core.errors import StoreError
from octavo.core.sensitivity.lending import lend
from octavo.core.sensitivity.memory import Memory, short_key, worth_keeping
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.storage.saved_trials import read_trials, write_trials
from octavo.core.values.trial import Trial

from .bench import Bench

BATCHES = 2  # of the calibration data, that every probe is run on

EVALUATIONS = 20
"""What a search without sensitivities takes beyond one with them, and that generously."""

SECONDS = 60.0
"""Sensitivities that are found in so short a time are not weighed."""

ROW = 1000
"""Scores in one row of a history: 40 bytes each, and MySQL's rows of text end at 64 KiB."""


def sensitivity_services(
    bench: Bench, path: str | Path | None, seed: int, output_metric: str = "auto"
) -> dict[str, SensitivityService]:
    """Return the service of each backend that has a choice.

    Args:
        bench: The run's.
        path: Holds the scores of earlier runs, one file for each backend (``NAME.BACKEND.json``).
        seed: Of what is drawn for gradients.
        output_metric: How outputs are compared.
    """
    found = {}
    for name, backend in bench.backends.items():
        if not backend.space.tunable:
            continue
        kept = _file_of(name, path) if path is not None else None
        found[name] = SensitivityService(
            backend.opened,
            backend.realizer,
            tuple(islice(backend.data, BATCHES)),
            kept,
            note=bench.tell,
            seed=seed,
            watched=partial(bench.phases.probes, about=f"on {name}"),
            memory=InHistory(bench, name),
            output_metric=output_metric,
        )
    lend(tuple(found.values()))
    return found


def _file_of(backend: str, path: str | Path) -> Path:
    """Return where a backend's scores are kept: its settings may hold what no file's name does."""
    name = re.sub(r"[^\w.=,()-]+", "-", backend)
    return Path(path).with_suffix(f".{name}.json")


class InHistory(Memory):
    """Keeps the dear scores of one backend in a run's history, from where a resumed run has them.

    Args:
        bench: The run's.
        backend: Its name.
    """

    def __init__(self, bench: Bench, backend: str) -> None:
        self._bench = bench
        self._backend = backend
        # Parts of them that the history holds, each a fact of its own.
        self._parts = 0
        self._known: dict[str, float] = {}
        while held := bench.history.fact(self._key()):
            for key, loss in held.items():
                self._known[key] = float("inf") if loss is None else float(loss)
            self._parts += 1

    def _key(self) -> str:
        return f"sensitivities:{self._backend}:{self._parts}"

    def recall(self, key: str) -> float | None:
        """Return a score that an earlier process of the run found."""
        return self._known.get(short_key(key))

    def learn(self, scores: Mapping[str, float]) -> None:
        """Write scores to the history, a limited number to a row."""
        left = iter(worth_keeping(scores).items())
        while part := dict(islice(left, ROW)):
            try:
                self._bench.history.put(self._key(), part)
            except StoreError as error:
                self._bench.tell(f"sensitivities are not kept for a resume: {error}")
                return
            self._parts += 1


def worth_of_probes(bench: Bench, service: SensitivityService) -> float | None:
    """Return how many runs of a batch sensitivities are worth on one backend.

    They may take as long as :data:`EVALUATIONS` evaluations, or :data:`SECONDS`. The float model's
    own run of a batch is timed once in the life of a history, so that a resumed run decides alike.

    Args:
        bench: The run's; the float model is scored.
        service: The backend's.

    Returns:
        None where there is no batch, or the float model cannot be run.
    """
    if not service.batches:
        return None
    key = f"worth of probes:{service.opened.name}"
    known = bench.history.fact(key)
    if known is not None:
        return float(known)
    begun = time.perf_counter()
    with contextlib.suppress(
        Exception
    ):  # what fails here is told where it is asked for
        service.opened.session.reference().run(service.batches[0])
        each = max(time.perf_counter() - begun, 1e-9)
        baseline = bench.baseline
        evaluation = baseline.seconds.get("evaluate", 0.0) / max(1, baseline.runs)
        runs = max(SECONDS, EVALUATIONS * evaluation) / each
        with contextlib.suppress(StoreError):  # a resumed run then times it again
            bench.history.put(key, runs)
        return runs
    return None


def earlier_trials(bench: Bench, service: SensitivityService) -> tuple[Trial, ...]:
    """Return what runs with other goals measured on one backend, judged by this run's goal.

    A resumed run is given what it was given before, and not its own trials.

    Args:
        bench: The run's; the float model is scored.
        service: The backend's, which knows the file.

    Raises:
        StoreError: If the file's trials are damaged.
    """
    if service.path is None:
        return ()
    baseline = bench.baseline.metrics
    found = read_trials(service.path, baseline)
    key = f"earlier trials:{service.opened.name}"
    given = bench.history.fact(key)
    if given is None:
        given = [] if bench.trials else list(found)
        with contextlib.suppress(StoreError):  # a resumed run then starts without them
            bench.history.put(key, given)
    trials = []
    for digest in given:
        if digest in found:
            recipe, metrics = found[digest]
            margin = bench.criterion.judge(metrics, baseline).margin
            trials.append(Trial(0, recipe, metrics=metrics, margin=margin))
    return tuple(trials)


def keep_scores(service: SensitivityService, bench: Bench) -> None:
    """Write the scores, and what recipes scored.

    That they cannot be written costs the next run its start, and not this one its result.
    """
    scored = bench.scored.metrics if bench.scored is not None else {}
    try:
        measured = read_trials(service.path, scored) if service.path else {}
        service.save()
        for trial in bench.trials:
            recipe = trial.recipe
            if trial.state == "complete" and recipe.backend == service.opened.name:
                measured.pop(recipe.digest, None)
                measured[recipe.digest] = (recipe, trial.metrics)
        if service.path is not None:
            write_trials(service.path, scored, measured)
    except StoreError as error:
        bench.tell(f"the sensitivities are not kept: {error}")
