"""Running many candidates on the same few batches.

What comes before the first changed node is recalled, not computed again. The graph is cut where few
values pass (for a transformer the hidden state and the mask), so that what follows is a model of
its own: it is serialized by itself, shares every tensor, and is fused by ONNX Runtime as the whole
is. It is the only session that is created.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir import Model, Node, Value

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.candidate import OnnxCandidate
from octavo.adapters.onnx.prepare.scopes import captured
from octavo.adapters.onnx.run.compiling import (
    RUNTIME_ERRORS,
    compile_model,
    compile_proto,
)
from octavo.adapters.onnx.run.feeds import input_infos
from octavo.adapters.onnx.run.parts import part
from octavo.core.authoring.feeding import feed
from octavo.core.contract.adapter import Batch, Candidate
from octavo.core.contract.recall import Room
from octavo.core.errors import ModelError

from .cuts import Cut, cuts

_Arrays = tuple[np.ndarray, ...]
_Known = dict[str, np.ndarray]
"""Name of an input of the model, or of a value at a cut -> its array for one batch."""


class Reuse:
    """Runs candidates of one session, each from the last cut before its first changed node.

    The float model is run once for each batch, when a first candidate has a cut before it. A cut
    from which the float outputs do not come again, bit for bit, is not used; nor is any where all
    values together are more than ``RECALL_BYTES``.

    Args:
        model: The float model, edited as candidates are where nothing is quantized.
        config: Providers and threads.
        batches: The batches.
    """

    def __init__(
        self, model: Model, config: OnnxConfig, batches: Sequence[Batch]
    ) -> None:
        self._model = model
        self._config = config
        self._batches = batches
        self._nodes = [(node.name or "", _signature(node)) for node in model.graph]
        self._kept: dict[int, bool] = {}
        self.cuts = cuts(model)

    def __call__(self, candidate: Candidate) -> Iterator[_Arrays]:
        """Yield the candidate's outputs for each batch."""
        assert isinstance(candidate, OnnxCandidate)
        graph = candidate.native.graph
        first = self.first_changed(graph)
        # The last cut that can be used recalls most.
        for cut in reversed(self.cuts):
            if cut.at > first or not self._holds(cut):
                continue
            session = self._after(cut, graph)
            if session is not None:
                yield from self._run(session)
                return
        for batch in self._batches:
            yield candidate.run(batch)

    def first_changed(self, model: Model) -> int:
        """Return how many nodes of the float graph come before the first changed one."""
        found = {node.name or "": node for node in model.graph}
        for index, (name, signature) in enumerate(self._nodes):
            node = found.get(name)
            if node is None or _signature(node) != signature:
                return index
        return len(self._nodes)

    def _holds(self, cut: Cut) -> bool:
        """True if the float model's outputs come out of what is remembered at a cut."""
        if cut.at not in self._kept:
            known, expected = self._recorded
            holds = False
            # A value whose declared shape is not the one it has is no input that the runtime takes:
            # such a cut is not used either.
            with contextlib.suppress(ModelError, *RUNTIME_ERRORS):
                holds = bool(known) and self._repeats(cut, expected)
            self._kept[cut.at] = holds
        return self._kept[cut.at]

    def _repeats(self, cut: Cut, expected: _Arrays) -> bool:
        """True if the first batch's outputs come again, bit for bit."""
        session = self._after(cut, self._model)
        if session is None:
            return False
        found = next(self._run(session))
        for array, wanted in zip(found, expected, strict=True):
            if not np.array_equal(array, wanted, equal_nan=True):
                return False
        return True

    @cached_property
    def _recorded(self) -> tuple[list[_Known], _Arrays]:
        """The values at all cuts by batch, and the float model's outputs for the first batch.

        No values where they are too many.
        """
        known: list[_Known] = []
        passing = chain.from_iterable(cut.passing for cut in self.cuts)
        # Neighbouring cuts may share values.
        names = list(dict.fromkeys(passing))
        session = self._session_with(names)
        inputs = session.get_inputs()
        room = Room()
        for batch in self._batches:
            given = feed(batch, input_infos(inputs))
            arrays = session.run(names, given)
            size = sum(array.nbytes for array in arrays)
            if not room.take(size):
                return [], ()
            at_cuts = dict(zip(names, arrays, strict=True))
            known.append({**given, **at_cuts})
        # The outputs of the model as it is: one with more outputs may be fused otherwise.
        whole = compile_model(self._model, self._config).session
        first = feed(self._batches[0], input_infos(whole.get_inputs()))
        outputs = whole.run(None, first)
        return known, tuple(outputs)

    def _session_with(self, names: Sequence[str]) -> ort.InferenceSession:
        """Return a session of the float model that also puts some values out."""
        clone = self._model.clone()
        graph = clone.graph
        present = {value.name for value in graph.outputs}
        values = {value.name: value for value in _written(graph)}
        for name in names:
            if name not in present:
                graph.outputs.append(values[name])
        return compile_model(clone, self._config).session

    def _run(self, session: ort.InferenceSession) -> Iterator[_Arrays]:
        """Yield the outputs of what follows a cut, out of what is remembered at it."""
        wanted = [declared.name for declared in session.get_inputs()]
        known, _ = self._recorded
        for arrays in known:
            given = {name: arrays[name] for name in wanted}
            outputs = session.run(None, given)
            yield tuple(outputs)

    def _after(self, cut: Cut, model: Model) -> ort.InferenceSession | None:
        """Return a session for a model's nodes after a cut.

        None where these read a value that does not pass it.
        """
        graph = model.graph
        before = {name for name, _ in self._nodes[: cut.at]}
        nodes = [node for node in graph if node.name not in before]
        read = captured(nodes)
        known = {value.name for value in graph.inputs}
        known.update(cut.passing)
        if any(value.name not in known for value in read):
            return None
        # An output that is computed before the cut is not computed again.
        written = set(_written(nodes))
        if not written.issuperset(graph.outputs):
            return None
        proto, held = part(model, nodes, read, graph.outputs)
        return compile_proto(proto, held, self._config).session


def _written(nodes: Iterable[Node]) -> Iterator[Value]:
    """Yield what nodes put out."""
    for node in nodes:
        yield from node.outputs


def _signature(node: Node) -> tuple[Any, ...]:
    """What makes two nodes of one name compute the same from equal inputs.

    Tensors are shared, and compared by identity.
    """
    inputs = tuple(_identity(value) for value in node.inputs)
    outputs = tuple(value.name for value in node.outputs)
    settings = []
    for name, attribute in node.attributes.items():
        held = attribute.value
        if isinstance(held, ir.TensorProtocol):
            held = id(held)
        settings.append((name, held))
    settings.sort()
    return node.domain, node.op_type, inputs, outputs, tuple(settings)


def _identity(value: Value | None) -> tuple[str | None, int | None] | None:
    if value is None:
        return None
    if not value.is_initializer():
        return value.name, None
    tensor = value.const_value
    return value.name, id(tensor)
