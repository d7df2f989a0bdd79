"""If, Loop and Scan: operators with bodies. A body reads the values around it by name.

Source: the ONNX operators If, Loop and Scan-9.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from octavo.adapters.numpy.graph import Array

from .registry import Build, Kernel, compiled


def _body(build: Build, attribute: str) -> Kernel:
    assert build.body is not None
    return build.body(build.node.attributes[attribute])


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)


def _truth(condition: Any) -> bool:
    return bool(np.asarray(condition).reshape(()))


class _Scans:
    """The scan outputs of a loop, collected step by step."""

    def __init__(self, count: int) -> None:
        self.stacks: list[list[Array]] = [[] for _ in range(count)]

    def add(self, values: Sequence[Array]) -> None:
        """Add one step's values."""
        for stack, value in zip(self.stacks, values, strict=True):
            stack.append(value)


@compiled("If")
def if_(build: Build) -> Kernel:
    """ONNX If: run one of two bodies."""
    then_branch = _body(build, "then_branch")
    else_branch = _body(build, "else_branch")

    def run(condition: Array, *, captured: Any) -> Any:
        branch = then_branch if _truth(condition) else else_branch
        return _one_or_all(branch([], captured))

    return run


@compiled("Loop")
def loop(build: Build) -> Kernel:
    """ONNX Loop: run a body until its condition fails or the trip count is reached.

    States are carried from step to step, scan outputs stacked.
    """
    # The body puts out the condition, the states and the scan outputs.
    outputs = len(build.node.attributes["body"].outputs)
    return partial(_loop, _body(build, "body"), outputs - 1)


def _loop(
    body: Kernel, outputs: int, trips: Any, condition: Any, *states: Any, captured: Any
) -> Any:
    limit = None if trips is None else int(np.asarray(trips).reshape(()))
    going = condition is None or _truth(condition)
    count = len(states)
    carried = list(states)
    scans = _Scans(outputs - count)
    i = 0
    while going and (limit is None or i < limit):
        given = [np.asarray(i, np.int64), np.asarray(True), *carried]
        again, *results = body(given, captured)
        going = _truth(again)
        carried = results[:count]
        scans.add(results[count:])
        i += 1
    # Of no step the element's shape is not known.
    nothing = np.zeros((0,), np.float32)
    stacked = [np.stack(s) if s else nothing for s in scans.stacks]
    return _one_or_all([*carried, *stacked])


class _Directed(NamedTuple):
    """How a scanned array lies: its time axis, and whether it is walked from the end."""

    axis: int
    is_reversed: int

    def steps(self, x: Array) -> Array:
        """View an array with time first."""
        moved = np.moveaxis(x, self.axis, 0)
        return moved[::-1] if self.is_reversed else moved

    def joined(self, steps: list[Array]) -> Array:
        """Put steps together as such an array."""
        stacked = np.stack(steps[::-1] if self.is_reversed else steps)
        return np.moveaxis(stacked, 0, self.axis)


def _directed(build: Build, kind: str, count: int) -> list[_Directed]:
    """Return how the scan inputs or outputs lie."""
    none = (0,) * count
    axes = build.get(f"scan_{kind}_axes", none)
    directions = build.get(f"scan_{kind}_directions", none)
    return [_Directed(*row) for row in zip(axes, directions, strict=True)]


@compiled("Scan", since=9)
def scan(build: Build) -> Kernel:
    """ONNX Scan-9: run a body over slices of the scan inputs.

    States are carried from step to step, scan outputs stacked.
    """
    body = _body(build, "body")
    count = build.get("num_scan_inputs", 1)
    outputs = len(build.node.attributes["body"].outputs)
    read = _directed(build, "input", count)

    def run(*inputs: Any, captured: Any) -> Any:
        state_count = len(inputs) - count
        states = list(inputs[:state_count])
        pairs = zip(read, inputs[state_count:], strict=True)
        sequences = [how.steps(x) for how, x in pairs]
        scans = _Scans(outputs - state_count)
        for step in zip(*sequences, strict=True):
            results = list(body([*states, *step], captured))
            states = results[:state_count]
            scans.add(results[state_count:])
        written = _directed(build, "output", outputs - state_count)
        stacks = zip(written, scans.stacks, strict=True)
        joined = [how.joined(stack) for how, stack in stacks]
        return _one_or_all([*states, *joined])

    return run
