"""Passes of the float program over batches: values for calibration, shapes for the description."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Graph
from octavo.adapters.numpy.kernels.casting import dtype_of, plain
from octavo.adapters.numpy.run.program import Program
from octavo.core.contract.adapter import Batch, Sink
from octavo.core.errors import ModelError, nearest

Shapes = dict[str, tuple[int, ...]]
"""Value name -> shape."""


def observe(
    program: Program, batches: Iterable[Batch], values: Iterable[str], sink: Sink
) -> int:
    """Hand the named values of each batch to ``sink``; return how many batches there were.

    Raises:
        ModelError: If a value is not in the graph.
    """

    def hand_on(name: str, array: np.ndarray) -> None:
        sink(name, plain(array))

    watch = dict.fromkeys(values, hand_on)
    known = _values_of(program.graph)
    for name in watch:
        if name not in known:
            raise ModelError(
                f"there is no value {name!r} to observe{nearest(name, known)}"
            )
    count = 0
    for batch in batches:
        program.run(program.feed(batch), watch)
        count += 1
    return count


def trace(program: Program, example: Batch | None) -> tuple[Shapes, tuple[str, ...]]:
    """Return the shapes of all values for one batch, and what its memory plan comes to.

    Args:
        program: The float program.
        example: The batch; None takes zeros, where the graph declares all sizes but the batch's.
            Nothing is known of a graph that does not.
    """
    graph = program.graph
    batch = _zeros(graph) if example is None else example
    if batch is None:
        return {}, ()
    shapes: Shapes = {}

    def note(name: str, array: np.ndarray) -> None:
        shapes[name] = array.shape

    arrays = program.feed(batch)
    program.run(arrays, dict.fromkeys(_values_of(graph) - {""}, note))
    plan = program.plan(arrays)
    named = zip(graph.inputs, arrays, strict=True)
    given = ", ".join(f"{info.name} {array.shape}" for info, array in named)
    fact = (
        f"static memory plan for {given}: {plan.arena:,} bytes of activations at the peak, "
        f"{plan.total:,} without reuse"
    )
    return shapes, (fact,)


def _values_of(graph: Graph) -> set[str]:
    written = {value for node in graph.nodes for value in node.outputs}
    return written | {info.name for info in graph.inputs}


def _zeros(graph: Graph) -> tuple[Any, ...] | None:
    """Return a batch of one row of zeros; None where a size besides the first is not declared."""
    arrays = []
    for info in graph.inputs:
        if info.shape is None or None in info.shape[1:]:
            return None
        arrays.append(
            np.zeros([size or 1 for size in info.shape], dtype_of(info.dtype))
        )
    return tuple(arrays)
