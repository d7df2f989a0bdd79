"""Figures by layer, at the end of a run: what each op costs, what it bears, and how sure that is.

Nothing here may cost a run its result: what fails is left out, and said.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from octavo.core.contract.adapter import Candidate
from octavo.core.errors import said
from octavo.core.quantizing.errors_of_weights import weight_errors
from octavo.core.sensitivity.by_op import losses_of
from octavo.core.system.signals import OutOfTime, deadline
from octavo.core.tuning.bench import Backend, Bench
from octavo.core.tuning.progress import FIGURES, SENSITIVITIES
from octavo.core.values.graph import ModelView
from octavo.core.values.layers import REST, Layer
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.trial import Trial

SHARE = 0.03
"""Share of what a run has taken that each kind of figure may take on top."""

LEAST = 1.0
"""Seconds that each may take however short the run was."""

LEAST_TIMED = 0.02
"""Seconds for which the calls of each model are timed, at least."""

NO_TIME = "they would have taken too large a share of the run"

TIMED = 0.5
"""Seconds for which the calls of each model are timed, at most."""

Rows = Mapping[str, Mapping[str, Any]]
"""Op name -> fields of its :class:`~octavo.core.values.layers.Layer`."""


class _Figures:
    """What is known by layer: its rows are fields of layers by op, in execution order."""

    def __init__(self, view: ModelView) -> None:
        self.rows: dict[str, dict[str, Any]] = {op.name: {} for op in view.ops}

    def add(self, found: Rows) -> None:
        """Take figures in; what is of no op of the model is the rest's."""
        for name, fields in found.items():
            is_op = name in self.rows and name != REST
            row = self.rows.setdefault(name if is_op else REST, {})
            for key, value in fields.items():
                row[key] = value if is_op else row.get(key, 0) + value

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers in execution order, and the rest last."""
        return {name: Layer(**fields) for name, fields in self.rows.items()}


def figures_by_layer(
    bench: Bench, backend: Backend, candidate: Candidate
) -> dict[str, Layer]:
    """Return the figures of every op of a run's result; what cannot be had is told.

    Args:
        bench: The run's.
        backend: The one that the result is of.
        candidate: The result's model.
    """
    figures = _Figures(backend.opened.view)
    asked = _Asked(bench, backend, candidate)
    parts: Mapping[str, Callable[[], Rows]] = {
        SENSITIVITIES: asked.sensitivities,
        "bytes": asked.bytes,
        "errors of weights": asked.errors,
        "milliseconds": asked.milliseconds,
    }
    late: list[str] = []
    for what, find in parts.items():
        # What the search asked for is known, and costs nothing.
        limit = None if what == SENSITIVITIES else bench.clock.until()
        try:
            with bench.phases.within(FIGURES), deadline(limit):
                figures.add(find())
        except OutOfTime:
            late.append(what)
        except KeyboardInterrupt:
            bench.tell(f"no {what} by layer: interrupted")
            break
        # Whatever a stranger's backend raises here, the result stands.
        except Exception as error:
            bench.tell(f"no {what} by layer: {said(error)}")
    if late:
        bench.tell(f"no {', '.join(late)} by layer: {bench.clock}", logging.INFO)
    return figures.layers


@dataclass
class _Asked:
    """Finds the figures of one result."""

    bench: Bench
    backend: Backend
    candidate: Candidate

    @property
    def recipe(self) -> Recipe:
        """What the result's model was made by."""
        return self.candidate.recipe

    def _allowance(self) -> Callable[[], bool]:
        """Return what tells whether there is still time for one more figure of a kind.

        The first one pays for what all of them look at: time counts from its end on.
        """
        clock = self.bench.clock
        asked = 0
        end = math.inf

        def has_time() -> bool:
            nonlocal asked, end
            asked += 1
            if asked == 2:
                end = time.perf_counter() + max(LEAST, SHARE * self._spent)
            return time.perf_counter() < end and not clock.ran_out

        return has_time

    @property
    def _spent(self) -> float:
        """Seconds that the run has taken."""
        return time.perf_counter() - self.bench.clock.began

    def sensitivities(self) -> Rows:
        """Return the sensitivity of each op: asked for in the search, or a cheap one."""
        service = self.bench.sensitivities.get(self.backend.opened.name)
        if service is None:
            return {}
        tried = _tried(self.backend, self.bench.trials)
        losses, late = losses_of(service, self.recipe, tried, self._allowance())
        if late:
            which = "one unit" if late == 1 else f"{late} units"
            why = self.bench.clock if self.bench.clock.ran_out else NO_TIME
            left_out = f"no sensitivities of {which}: {why}"
            self.bench.tell(left_out, logging.INFO)
        rows: dict[str, dict[str, Any]] = {}
        for found in losses:
            ops = found.unit.ops
            for op, scheme in found.unit.schemes(found.scheme).items():
                rows[op] = {
                    "sensitivity": found.loss,
                    "kind": found.kind,
                    "scheme": str(scheme),
                    "unit": found.unit.name if len(ops) > 1 else "",
                }
        return rows

    def errors(self) -> Rows:
        """Return the error of each quantized weight, from what the run has quantized."""
        has_time = self._allowance()
        found: dict[str, dict[str, Any]] = {}
        for op, error in weight_errors(self.backend.realizer, self.candidate):
            found[op] = {"error": error}
            if not has_time():
                last = f"no errors of weights behind {op!r}: {NO_TIME}"
                self.bench.tell(last, logging.INFO)
                break
        return found

    def bytes(self) -> Rows:
        """Return the bytes of each op in the files of the result and of the float model."""
        own = self.candidate
        if type(own).bytes_by_op is Candidate.bytes_by_op:
            return {}
        whole = self._float_model.bytes_by_op()
        held = whole if self._is_float else own.bytes_by_op()
        # The second op of a shared weight takes no bytes, which is known.
        nothing = {op.name: 0 for op in self.backend.opened.view.ops if op.weights}
        return _paired("bytes", {**nothing, **held}, {**nothing, **whole})

    def milliseconds(self) -> Rows:
        """Return the time of each op in a call of the result and of the float model, in turns."""
        own = self.candidate
        if type(own).profile is Candidate.profile:
            return {}
        before = self._spent
        seconds = min(TIMED, max(LEAST_TIMED, SHARE * before)) / 2
        batch = self.backend.data.first()
        base = self._float_model
        if self._is_float:
            found = base.profile(batch, seconds)
            return _paired("ms", found, found)
        in_float = [base.profile(batch, seconds)]
        quantized = [own.profile(batch, seconds)]
        # Where making sessions took long, one turn has to do.
        if self._spent - before < max(LEAST, SHARE * before):
            quantized.append(own.profile(batch, seconds))
            in_float.append(base.profile(batch, seconds))
        return _paired("ms", _mean(quantized), _mean(in_float))

    @property
    def _is_float(self) -> bool:
        return not self.recipe.schemes and not self.recipe.transforms

    @cached_property
    def _float_model(self) -> Candidate:
        """Return the float model with the ops that recipes name, as candidates are made of it."""
        name = self.backend.opened.name
        # A draft: its ledger, which may cost as much as it does, is not asked for.
        return self.backend.opened.session.draft(Recipe(backend=name), {})


def _tried(backend: Backend, trials: Iterable[Trial]) -> dict[str, OpScheme]:
    """Return unit name -> the scheme that a trial of a backend quantized it with, the last one's.

    Its weights are quantized already, so that what it costs is soon found.
    """
    found: dict[str, OpScheme] = {}
    for trial in trials:
        if trial.recipe.backend != backend.opened.name or trial.state == "failed":
            continue
        for unit in backend.space.tunable:
            scheme = trial.recipe[unit.ops[0]]
            if not scheme.is_float:
                found[unit.name] = scheme
    return found


def _paired(field: str, own: Mapping[str, float], base: Mapping[str, float]) -> Rows:
    """Return each op's figure in the result and in the float model."""
    rows: dict[str, dict[str, Any]] = {}
    for name, found in ((field, own), (f"float_{field}", base)):
        for op, value in found.items():
            rows.setdefault(op, {})[name] = value
    return rows


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each op's figures."""
    ops = dict.fromkeys(op for one in found for op in one)
    return {op: sum(one.get(op, 0.0) for one in found) / len(found) for op in ops}
