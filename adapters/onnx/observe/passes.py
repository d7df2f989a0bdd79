"""Observation: intermediate values as extra outputs, one run of the float model per batch, memory bounded."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.prepare.scopes import scopes, walk
from octavo.adapters.onnx.run.compiling import compile_model
from octavo.adapters.onnx.run.feeds import feeds
from octavo.core.contract.adapter import Batch, Sink
from octavo.core.errors import DataError, ModelError, nearest
from octavo.core.values.calls import flat, named

from .bodies import Replay, find_region

logger = logging.getLogger(__name__)


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
        return (
            f"observed {self.values} intermediate values of {self.batches} batches, {self.parts} runs each; "
            f"at most {self.held / 2**20:.1f} MiB of them were held at once"
        )


def observe(
    model: ir.Model, config: OnnxConfig, batches: Iterable[Batch], values: Sequence[str], sink: Sink
) -> Observed:
    """Hand every array of every named value to ``sink``; return what that took.

    All values come out of one run per batch while their arrays fit ``config.observe_megabytes``; beyond that, the values
    are split into parts and the batch is run once for each part, so that memory stays bounded whatever the model. A body of If,
    Loop or Scan is carried out by itself (:mod:`.replay`), with all values of one step at once.

    Raises:
        DataError: If a batch is not finite or not of the model's shapes.
        ModelError: If a value does not exist.
    """
    inputs = {v.name or "": v for v in model.graph.inputs}
    region = find_region(model.graph, frozenset(values))
    _check_known(model, values)
    inner = [v for v in region.wanted if v not in inputs]
    # What bodies read comes out of the same run, and is kept until they have been carried out.
    read = [v.name or "" for v in region.needed if v.name not in inputs]
    wanted, kept = frozenset(inner), frozenset(read)
    replay = Replay(model, config, sink)
    bound = config.observe_megabytes * 2**20
    parts: list[tuple[ort.InferenceSession, list[str]]] | None = None
    seen = Observed(values=len(frozenset(values) - inputs.keys()))
    for batch in batches:
        if parts is None:
            parts = _parts(model, config, batch, list(dict.fromkeys((*inner, *read))), bound)
            seen.parts = len(parts)
        given = feeds(parts[0][0].get_inputs(), batch)
        _check_finite(given, seen.batches)
        for name in values:
            if name in inputs:
                sink(name, given[name])
        known: dict[str, Any] = dict(given)
        for session, names in parts:
            arrays = session.run(names, given) if names else []
            held = sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))
            if held > max(bound, seen.held) and len(names) == 1:
                warnings.warn(
                    f"value {names[0]!r} alone takes {held / 2**20:.0f} MiB in calibration, more than observe_megabytes = "
                    f"{config.observe_megabytes}; smaller batches need less",
                    stacklevel=2,
                )
            seen.held = max(seen.held, held)
            for name in reversed(names):  # each array goes before the next is looked at
                array = arrays.pop()
                if name in kept:
                    known[name] = array
                if name in wanted:
                    sink(name, array)
                del array
        replay(region, known)
        seen.held = max(seen.held, replay.held)
        seen.batches += 1
    logger.info("%s", seen)
    return seen


def _check_known(model: ir.Model, values: Sequence[str]) -> None:
    known = {v.name or "" for scope in scopes(model.graph) for v in scope.inputs}
    known |= {v.name or "" for node in walk(model.graph) for v in node.outputs}
    for name in values:
        if name not in known:
            raise ModelError(f"the model has no value {name!r}{nearest(name, known)}")


def _check_finite(given: Mapping[str, np.ndarray], index: int) -> None:
    for name, array in given.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(
                f"input {name!r} of calibration batch {index} holds NaN or Inf; clean the data"
            )


def parts_session(
    model: ir.Model, config: OnnxConfig, names: Sequence[str], *, sizes: bool = False
) -> ort.InferenceSession:
    """Return a session that also puts out the named values, or their element counts."""
    clone = model.clone()
    found = {v.name: v for node in clone.graph for v in node.outputs}
    present = {v.name for v in clone.graph.outputs}
    for name in names:
        value = found[name]
        if sizes:
            node = ir.node("Size", [value], name=f"{name}_size")
            node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = (
                f"{name}_size",
                ir.TensorType(ir.DataType.INT64),
                ir.Shape([]),
            )
            clone.graph.append(node)
            clone.graph.outputs.append(node.outputs[0])
        elif name not in present:
            clone.graph.outputs.append(value)
    return compile_model(clone, config, lean=True).session


def _parts(
    model: ir.Model, config: OnnxConfig, batch: Batch, names: list[str], bound: int
) -> list[tuple[ort.InferenceSession, list[str]]]:
    """Return a session for each part of the values that fits into ``bound`` bytes.

    Sizes follow from the declared shapes and those of the first batch; where one is unknown, a run of that batch measures it.
    """
    counts = _declared(model, batch, names)
    unknown = [n for n in names if n not in counts]
    if unknown:
        measuring = parts_session(model, config, unknown, sizes=True)
        given = feeds(measuring.get_inputs(), batch)
        counts |= zip(
            unknown, map(int, measuring.run([f"{n}_size" for n in unknown], given)), strict=True
        )
        del measuring
    parts: list[list[str]] = [[]]
    held = 0
    for name in names:
        size = 4 * counts[name]
        if parts[-1] and held + size > bound:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    return [(parts_session(model, config, part), part) for part in parts]


def _declared(model: ir.Model, batch: Batch, names: Sequence[str]) -> dict[str, int]:
    """Return value -> elements, for those whose axes are numbers or axes of an input."""
    order = tuple(v.name or "" for v in model.graph.inputs)
    rows = dict(named(flat(batch, order), order))
    axes: dict[object, int] = {}
    for value in model.graph.inputs:
        for axis, length in zip(
            value.shape or (), getattr(rows.get(value.name or ""), "shape", ()), strict=False
        ):
            if isinstance(axis, ir.SymbolicDim) and axis.value is not None:
                axes[axis.value] = int(length)
    shapes = {v.name: v.shape for node in model.graph for v in node.outputs if v.name in names}
    found: dict[str, int] = {}
    for name in names:
        shape = shapes[name]
        sizes = (
            [d if isinstance(d, int) else axes.get(d.value) for d in shape]
            if shape is not None
            else [None]
        )
        if None not in sizes:
            found[name] = math.prod(n for n in sizes if n is not None)
    return found
