"""If, Loop and Scan: operators with bodies. A body reads the values around it by name.

Source: the ONNX operators If, Loop and Scan-9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    body = _body(build, "body")
    outputs = len(build.node.attributes["body"].outputs)

    def run(trips: Any, condition: Any, *states: Any, captured: Any) -> Any:
        limit = None if trips is None else int(np.asarray(trips).reshape(()))
        going = condition is None or _truth(condition)
        count = len(states)
        carried = list(states)
        scans = _Scans(outputs - 1 - count)
        i = 0
        while going and (limit is None or i < limit):
            given = [np.asarray(i, np.int64), np.asarray(True), *carried]
            again, *results = body(given, captured)
            going = _truth(again)
            carried = results[:count]
            scans.add(results[count:])
            i += 1
        # Of no step the element's shape is not known.
        stacked = [np.stack(s) if s else np.zeros((0,), np.float32) for s in scans.stacks]
        return _one_or_all([*carried, *stacked])

    return run


@compiled("Scan", since=9)
def scan(build: Build) -> Kernel:
    """ONNX Scan-9: run a body over slices of the scan inputs.

    States are carried from step to step, scan outputs stacked.
    """
    body = _body(build, "body")
    count = build.get("num_scan_inputs", 1)
    outputs = len(build.node.attributes["body"].outputs)
    in_axes = build.get("scan_input_axes", (0,) * count)
    in_reversed = build.get("scan_input_directions", (0,) * count)

    def run(*inputs: Any, captured: Any) -> Any:
        state_count = len(inputs) - count
        states, sequences = list(inputs[:state_count]), inputs[state_count:]
        scan_count = outputs - state_count
        out_axes = build.get("scan_output_axes", (0,) * scan_count)
        out_reversed = build.get("scan_output_directions", (0,) * scan_count)
        steps = []
        for sequence, axis, is_reversed in zip(sequences, in_axes, in_reversed, strict=True):
            moved = np.moveaxis(sequence, axis, 0)
            steps.append(moved[::-1] if is_reversed else moved)
        scans = _Scans(scan_count)
        for step in zip(*steps, strict=True):
            results = list(body([*states, *step], captured))
            states = results[:state_count]
            scans.add(results[state_count:])
        joined = []
        for stack, axis, is_reversed in zip(scans.stacks, out_axes, out_reversed, strict=True):
            stacked = np.stack(stack[::-1] if is_reversed else stack)
            joined.append(np.moveaxis(stacked, 0, axis))
        return _one_or_all([*states, *joined])

    return run
