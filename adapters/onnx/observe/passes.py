"""Observation: the float model is run once per batch, and its values are handed out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.adapters.onnx.prepare.scopes import scopes, walk
from octavo.adapters.onnx.run.feeds import input_infos
from octavo.core.authoring.feeding import feed
from octavo.core.contract.adapter import Batch, Sink
from octavo.core.errors import DataError, ModelError, nearest
from octavo.core.system.log import get_logger, remark

from .bodies import Replay, find_region
from .parts import Part, make_parts

logger = get_logger("onnx")


@dataclass
class Observed:
    """What an observation took.

    Attributes:
        batches: How many were run.
        values: Intermediate values that were put out.
        parts: Runs per batch.
        held: Most bytes of their arrays that were held at once.
    """

    batches: int = 0
    values: int = 0
    parts: int = 0
    held: int = 0

    def __str__(self) -> str:
        megabytes = self.held / 2**20
        return (
            f"observed {self.values} intermediate values of {self.batches} batches, "
            f"{self.parts} runs each; at most {megabytes:.1f} MiB of them were held at once"
        )


def observe(
    model: ir.Model,
    config: OnnxConfig,
    batches: Iterable[Batch],
    values: Sequence[str],
    sink: Sink,
) -> Observed:
    """Hand every array of every named value to ``sink``; return what that took.

    All values come out of one run per batch while their arrays fit ``config.observe_megabytes``;
    beyond that, the values are split into parts and the batch is run once for each part, so that
    memory stays bounded whatever the model. A body of If, Loop or Scan is carried out by itself
    (:mod:`.bodies`), with all values of one step at once.

    Raises:
        DataError: If a batch is not finite or not of the model's shapes.
        ModelError: If a value does not exist.
    """
    _check_known(model, values)
    run = _Run(model, config, values, sink)
    for batch in batches:
        run.observe(batch)
    logger.info("%s", run.seen)
    return run.seen


class _Run:
    """One observation, batch after batch."""

    def __init__(
        self, model: ir.Model, config: OnnxConfig, values: Sequence[str], sink: Sink
    ) -> None:
        self._model = model
        self._config = config
        self._sink = sink
        self._bound = config.observe_megabytes * 2**20
        self._region = find_region(model.graph, frozenset(values))
        inputs = {name_of(v) for v in model.graph.inputs}
        self._inputs = [name for name in values if name in inputs]
        self._wanted = _without(self._region.wanted, inputs)
        # What bodies read comes out of the same run, and is kept until they have been carried out.
        needed = [name_of(value) for value in self._region.needed]
        self._kept = _without(needed, inputs)
        self._replay = Replay(model, config, sink)
        self._parts: list[Part] | None = None
        inside = frozenset(values) - inputs
        self.seen = Observed(values=len(inside))

    def observe(self, batch: Batch) -> None:
        """Run one batch, and hand out what is wanted of it."""
        if self._parts is None:
            names = list(dict.fromkeys((*self._wanted, *self._kept)))
            self._parts = make_parts(self._model, self._config, batch, names)
            self.seen.parts = len(self._parts)
        first = self._parts[0].session
        given = feed(batch, input_infos(first.get_inputs()))
        _check_finite(given, self.seen.batches)
        for name in self._inputs:
            self._sink(name, given[name])
        known: dict[str, Any] = dict(given)
        for part in self._parts:
            self._run_part(part, given, known)
        self._replay(self._region, known)
        self.seen.held = max(self.seen.held, self._replay.held)
        self.seen.batches += 1

    def _run_part(
        self, part: Part, given: Mapping[str, np.ndarray], known: dict[str, Any]
    ) -> None:
        if not part.names:
            return
        arrays = part.session.run(part.names, given)
        sizes = [array.nbytes for array in arrays if isinstance(array, np.ndarray)]
        held = sum(sizes)
        is_most = held > max(self._bound, self.seen.held)
        if is_most and len(part.names) == 1:
            self._warn_of_size(part.names[0], held)
        self.seen.held = max(self.seen.held, held)
        # Each array goes before the next is looked at.
        for name in reversed(part.names):
            array = arrays.pop()
            if name in self._kept:
                known[name] = array
            if name in self._wanted:
                self._sink(name, array)
            del array

    def _warn_of_size(self, name: str, held: int) -> None:
        remark(
            f"value {name!r} alone takes {held / 2**20:.0f} MiB in calibration, more than "
            f"observe_megabytes = {self._config.observe_megabytes}; smaller batches need less",
            "onnx",
        )


def _without(names: Iterable[str], left_out: set[str]) -> dict[str, None]:
    """Return the other names, once and in order."""
    return dict.fromkeys(name for name in names if name not in left_out)


def _check_known(model: ir.Model, values: Sequence[str]) -> None:
    known = {name_of(v) for scope in scopes(model.graph) for v in scope.inputs}
    known |= {name_of(v) for node in walk(model.graph) for v in node.outputs}
    for name in values:
        if name not in known:
            raise ModelError(f"the model has no value {name!r}{nearest(name, known)}")


def _check_finite(given: Mapping[str, np.ndarray], index: int) -> None:
    for name, array in given.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(
                f"input {name!r} of calibration batch {index} holds NaN or Inf; clean the data"
            )
