"""Running many candidates on the same few batches: what comes before the first changed node is recalled, not computed again.

The graph is cut where few values pass (for a transformer the hidden state and the mask), so that what follows is a model of its own:
it is serialized by itself, shares every tensor, and is fused by ONNX Runtime as the whole is. It is the only session that is created.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.candidate import OnnxCandidate
from octavo.adapters.onnx.run.compiling import RUNTIME_ERRORS, compile_model, compile_proto
from octavo.adapters.onnx.run.feeds import feeds
from octavo.adapters.onnx.run.parts import part
from octavo.core.contract.adapter import Batch, Candidate
from octavo.core.contract.recall import Room
from octavo.core.errors import ModelError

CUTS = 16  # places at most
NARROW = 4  # values that may pass a place


@dataclass(frozen=True)
class Cut:
    """A place in the order of nodes.

    Attributes:
        at: Number of nodes before it.
        passing: Names of the values that are computed before it and read after it.
    """

    at: int
    passing: tuple[str, ...]


class Reuse:
    """Runs candidates of one session, each from the last cut before its first changed node.

    The float model is run once for each batch, when a first candidate has a cut before it. A cut from which the float outputs do
    not come again, bit for bit, is not used; nor is any where all values together are more than ``RECALL_BYTES``.

    Args:
        model: The float model, edited as candidates are where nothing is quantized.
        config: Providers and threads.
        batches: The batches.
    """

    def __init__(self, model: ir.Model, config: OnnxConfig, batches: Sequence[Batch]) -> None:
        self._model = model
        self._config = config
        self._batches = batches
        self._nodes = [(node.name or "", _signature(node)) for node in model.graph]
        self._kept: dict[int, bool] = {}
        self.cuts = cuts(model)

    def __call__(self, candidate: Candidate) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the candidate's outputs for each batch."""
        assert isinstance(candidate, OnnxCandidate)
        graph = candidate.native.graph
        first = self.first_changed(graph)
        for cut in reversed(self.cuts):
            if (
                cut.at <= first
                and self._holds(cut)
                and (session := self._after(cut, graph)) is not None
            ):
                yield from self._run(session, cut)
                return
        yield from (candidate.run(batch) for batch in self._batches)

    def first_changed(self, model: ir.Model) -> int:
        """Return how many nodes of the float graph come before the first one that a candidate does not have as it is."""
        found = {node.name or "": node for node in model.graph}
        for index, (name, signature) in enumerate(self._nodes):
            if name not in found or _signature(found[name]) != signature:
                return index
        return len(self._nodes)

    def _holds(self, cut: Cut) -> bool:
        """True if the float model's outputs come out of what is remembered at a cut."""
        if cut.at not in self._kept:
            known, expected = self._recorded
            self._kept[cut.at] = False
            # A value whose declared shape is not the one it has is no input that the runtime takes: such a cut is not used either.
            with contextlib.suppress(ModelError, *RUNTIME_ERRORS):
                if known and (session := self._after(cut, self._model)) is not None:
                    found = next(self._run(session, cut))
                    self._kept[cut.at] = all(
                        np.array_equal(a, b, equal_nan=True)
                        for a, b in zip(found, expected, strict=True)
                    )
        return self._kept[cut.at]

    @cached_property
    def _recorded(self) -> tuple[list[dict[str, np.ndarray]], tuple[np.ndarray, ...]]:
        """The values at all cuts by batch (none where they are too many), and the float model's outputs for the first batch."""
        known: list[dict[str, np.ndarray]] = []
        names = list(dict.fromkeys(v for cut in self.cuts for v in cut.passing))
        clone = self._model.clone()
        present = {v.name for v in clone.graph.outputs}
        values = {v.name: v for node in clone.graph for v in node.outputs}
        clone.graph.outputs.extend(values[n] for n in names if n not in present)
        session = compile_model(clone, self._config).session
        room = Room()
        for batch in self._batches:
            given = feeds(session.get_inputs(), batch)
            arrays = session.run(names, given)
            if not room.take(sum(a.nbytes for a in arrays)):
                return [], ()
            known.append({**given, **dict(zip(names, arrays, strict=True))})
        whole = compile_model(self._model, self._config).session
        return known, tuple(whole.run(None, feeds(whole.get_inputs(), self._batches[0])))

    def _run(self, session: ort.InferenceSession, cut: Cut) -> Iterator[tuple[np.ndarray, ...]]:
        wanted = [i.name for i in session.get_inputs()]
        for known in self._recorded[0]:
            yield tuple(session.run(None, {name: known[name] for name in wanted}))

    def _after(self, cut: Cut, model: ir.Model) -> ort.InferenceSession | None:
        """Return a session for a model's nodes after a cut; None where these read a value that does not pass it."""
        before = {name for name, _ in self._nodes[: cut.at]}
        nodes = [node for node in model.graph if node.name not in before]
        written = {v for node in nodes for v in node.outputs}
        read = {
            v: None
            for node in nodes
            for v in node.inputs
            if v is not None and v not in written and not v.is_initializer()
        }
        passing = {*cut.passing, *(v.name for v in model.graph.inputs)}
        if any(v.name not in passing for v in read) or any(
            v not in written for v in model.graph.outputs
        ):
            return None
        return compile_proto(
            *part(model, nodes, list(read), model.graph.outputs), self._config
        ).session


def cuts(model: ir.Model) -> list[Cut]:
    """Return up to :data:`CUTS` places where the fewest values pass, spread over the graph; none for graphs with subgraphs."""
    nodes = list(model.graph)
    names = {node.name for node in nodes}
    if len(names) < len(nodes) or model.functions or any(_nested(node) for node in nodes):
        return []
    place = {node: index for index, node in enumerate(nodes)}
    last = {
        v: len(nodes)
        if v.is_graph_output()
        else max((place[user] for user, _ in v.uses()), default=-1)
        for node in nodes
        for v in node.outputs
    }
    leaving: dict[int, list[ir.Value]] = {}
    for value, index in last.items():
        leaving.setdefault(index, []).append(value)
    alive: dict[ir.Value, None] = {}
    found: list[Cut] = []
    for index, node in enumerate(nodes[:-1]):
        alive.update((v, None) for v in node.outputs if last[v] > index)
        for value in leaving.get(index, ()):
            alive.pop(value, None)
        if 0 < len(alive) <= NARROW and all(
            v.name and v.type is not None and not v.is_graph_output() for v in alive
        ):
            found.append(Cut(index + 1, tuple(v.name or "" for v in alive)))
    inner = [c for c in found if len(nodes) // 4 <= c.at <= 3 * len(nodes) // 4]
    least = min((len(c.passing) for c in inner), default=0)
    narrow = [c for c in found if len(c.passing) <= least]
    # Of each stretch the last: the further on, the more is recalled.
    stretches = {c.at * CUTS // len(nodes): c for c in narrow}
    return list(stretches.values())


def _nested(node: ir.Node) -> bool:
    return any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    )


def _signature(node: ir.Node) -> tuple[Any, ...]:
    """What makes two nodes of one name compute the same from equal inputs. Tensors are shared, and compared by identity."""
    inputs = tuple(
        (v.name, id(v.const_value) if v.is_initializer() else None) if v is not None else None
        for v in node.inputs
    )
    attributes: Mapping[str, Any] = node.attributes
    settings = tuple(
        sorted(
            (name, id(a.value) if isinstance(a.value, ir.TensorProtocol) else a.value)
            for name, a in attributes.items()
        )
    )
    return node.domain, node.op_type, inputs, tuple(v.name for v in node.outputs), settings
