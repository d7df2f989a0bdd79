"""If, Loop and Scan: operators with bodies. A body reads the values around it by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from .registry import Build, Kernel, compiled


def _body(build: Build, attribute: str) -> Any:
    assert build.body is not None
    return build.body(build.node.attributes[attribute])


def _tuple(values: Any) -> Any:
    return values[0] if len(values) == 1 else tuple(values)


@compiled("If")
def if_(build: Build) -> Kernel:
    """Run one of two bodies."""
    branches = _body(build, "else_branch"), _body(build, "then_branch")

    def run(condition: np.ndarray, *, captured: Any) -> Any:
        return _tuple(branches[bool(condition.reshape(()))]([], captured))

    return run


@compiled("Loop")
def loop(build: Build) -> Kernel:
    """Run a body until its condition fails or the trip count is reached; carry states, stack scan outputs."""
    body = _body(build, "body")
    outputs = len(build.node.attributes["body"].outputs)

    def run(trips: Any, condition: Any, *states: Any, captured: Any) -> Any:
        limit = None if trips is None else int(np.asarray(trips).reshape(()))
        going = True if condition is None else bool(np.asarray(condition).reshape(()))
        carried = list(states)
        scans: list[list[Any]] = [[] for _ in range(outputs - 1 - len(states))]
        i = 0
        while going and (limit is None or i < limit):
            result = body([np.asarray(i, np.int64), np.asarray(True), *carried], captured)
            going = bool(result[0].reshape(()))
            carried = list(result[1 : 1 + len(carried)])
            for scan, value in zip(scans, result[1 + len(carried) :], strict=True):
                scan.append(value)
            i += 1
        return _tuple(
            [*carried, *(np.stack(s) if s else np.zeros((0,), np.float32) for s in scans)]
        )

    return run


@compiled("Scan", since=9)
def scan(build: Build) -> Kernel:
    """Run a body over slices of the scan inputs; carry states, stack scan outputs."""
    body = _body(build, "body")
    count = build.get("num_scan_inputs", 1)
    outputs = len(build.node.attributes["body"].outputs)

    def run(*inputs: Any, captured: Any) -> Any:
        states, sequences = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
        axes = build.get("scan_input_axes", (0,) * count)
        backwards = build.get("scan_input_directions", (0,) * count)
        moved = [
            np.moveaxis(s, a, 0)[:: -1 if b else 1]
            for s, a, b in zip(sequences, axes, backwards, strict=True)
        ]
        rest = outputs - len(states)
        stacks: list[list[Any]] = [[] for _ in range(rest)]
        for step in zip(*moved, strict=True):
            result = body([*states, *step], captured)
            states = list(result[: len(states)])
            for stack, value in zip(stacks, result[len(states) :], strict=True):
                stack.append(value)
        out_axes = build.get("scan_output_axes", (0,) * rest)
        reverse = build.get("scan_output_directions", (0,) * rest)
        joined = [
            np.moveaxis(np.stack(s[:: -1 if b else 1]), 0, a)
            for s, a, b in zip(stacks, out_axes, reverse, strict=True)
        ]
        return _tuple([*states, *joined])

    return run
