"""Where the time of a call goes, by ONNX Runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
import time
from bisect import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.describe.owners import TURNS_INTO_FLOATS, Owners
from octavo.adapters.onnx.run.compiling import compile_model
from octavo.adapters.onnx.run.feeds import input_infos
from octavo.core.authoring.feeding import feed
from octavo.core.contract.adapter import Batch
from octavo.core.contract.attribution import Step, by_op, owners_of
from octavo.core.values.layers import REST

from .executed import plain_name

Event = Mapping[str, Any]
_SUFFIX = "_kernel_time"
"""What the profiler appends to a node's name."""

_BLOCKED = "_nchwc"
"""What ONNX Runtime appends to the name of a node's value to name the node that computes it in
blocks of channels."""


def profile(
    model: ir.Model, config: OnnxConfig, owners: Owners, batch: Batch, seconds: float
) -> dict[str, float]:
    """Return op -> milliseconds of a call, in a session of its own.

    Args:
        model: To run.
        config: Providers and threads.
        owners: Whose its nodes are.
        batch: What it is run on.
        seconds: About how long the calls may take together.
    """
    # The profiler writes a file when it ends, and nothing else tells what it saw.
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        prefix = str(Path(folder) / "profile")
        compiled = compile_model(model, config, inspect=True, profile=prefix)
        session = compiled.session
        try:
            given = feed(batch, input_infos(session.get_inputs()))
            session.run(None, given)
            end = time.perf_counter() + seconds
            is_first = True
            while is_first or time.perf_counter() < end:
                session.run(None, given)
                is_first = False
        finally:
            written = Path(session.end_profiling())
        events = json.loads(written.read_text())
    calls, whole = _calls(events, compiled.nodes, owners)
    return by_op(calls, whole)


def _calls(
    events: Sequence[Event], nodes: Sequence[onnx.NodeProto], owners: Owners
) -> tuple[list[dict[str, float]], list[float]]:
    """Return the milliseconds of each op in each call but the first, and of these calls."""
    runs = [event for event in events if event["name"] == "model_run"]
    runs.sort(key=_start)
    starts = [_start(event) for event in runs]
    calls: list[dict[str, float]] = [{} for _ in runs]
    owner = _owner_by_name(nodes, owners)
    for event in events:
        name = str(event["name"])
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        number = bisect(starts, _start(event)) - 1
        if number < 0:
            continue
        op = owner.get(name.removesuffix(_SUFFIX), REST)
        call = calls[number]
        call[op] = call.get(op, 0.0) + event["dur"] / 1e3
    whole = [event["dur"] / 1e3 for event in runs]
    return calls[1:], whole[1:]


def _start(event: Event) -> int:
    return int(event["ts"])


def _owner_by_name(nodes: Sequence[onnx.NodeProto], owners: Owners) -> dict[str, str]:
    """Return the op of each executed node; of a node with a body, what is in it counts alone."""
    steps = []
    for node in nodes:
        written = node.output
        if node.name.endswith(_BLOCKED):
            written = [node.name.removesuffix(_BLOCKED)]
        owner = owners.of(plain_name(node), written)
        trails = node.op_type == TURNS_INTO_FLOATS
        steps.append(Step(owner, node.input, node.output, trails))
    found: dict[str, str] = {}
    for node, op in zip(nodes, owners_of(steps), strict=True):
        is_one = found.get(node.name, op) == op
        # The runtime calls several of its own nodes alike: whose time it is cannot be told then.
        found[node.name] = op if is_one and not _holds_body(node) else REST
    return found


def _holds_body(node: onnx.NodeProto) -> bool:
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in graphs for attribute in node.attribute)
