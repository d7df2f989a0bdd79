"""One opened .tflite model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from octavo.plugin import (
    Batch,
    Capability,
    Factors,
    HeldWeight,
    ModelError,
    ModelView,
    OpParameters,
    Recipe,
    Session,
    Sink,
    feed,
    ledger_lines,
    nearest,
    rescaled_weights,
)

from . import LitertConfig
from .apply import Emission
from .candidate import LitertCandidate, Running
from .describe import Described
from .graph import Graph
from .offers import capability, reason_of, untried


class LitertSession(Session):
    """A float model.

    Args:
        graph: The model; never changed.
        config: The card's settings.
        offered: What it carries out; None establishes that when it is asked.
    """

    def __init__(
        self, graph: Graph, config: LitertConfig, offered: Capability | None = None
    ) -> None:
        self.graph = graph
        self.config = config
        self.described = Described(graph)
        self._offered = offered

    def describe(self) -> ModelView:
        """Return the operators that write float values, as ops."""
        return self.described.view

    def census(self) -> Sequence[HeldWeight]:
        """Return the floating constants of two or more dimensions that operators read."""
        return self.described.census

    def capability(self) -> Capability:
        """Return what LiteRT's kernels carry out, established on models of one op."""
        if self._offered is None:
            types = {site.op.type for site in self.described.sites.values()}
            self._offered = capability(self.config, probing, types)
        return self._offered

    def observe(
        self, batches: Iterable[Batch], values: Iterable[str], sink: Sink
    ) -> int:
        """Run the float model; the wanted values are its outputs."""
        places = {name: self.described.places[name] for name in values}
        indices = dict.fromkeys(index for index, _ in places.values())
        computed = [index for index in indices if index not in self.graph.inputs]
        wanted = computed or self.graph.outputs
        model = Running(Emission(self.described, {}).model(wanted), self.config)
        count = 0
        for batch in batches:
            fed = list(feed(batch, self.describe().inputs).values())
            found = dict(zip(self.graph.inputs, fed, strict=True))
            found.update(zip(wanted, model(fed), strict=True))
            for name, (index, lay_out) in places.items():
                sink(name, lay_out(found[index]))
            count += 1
        return count

    def tensor(self, name: str) -> np.ndarray:
        """Return a weight in the core's layout, or a bias."""
        found = self.described.tensors
        if name not in found:
            raise ModelError(f"the model has no weight {name!r}{nearest(name, found)}")
        return found[name]

    def rescale(self, factors: Mapping[str, Factors]) -> LitertSession:
        """Return a session whose channels are scaled in streams of convolutions and linear ops."""
        view = self.describe()
        changed = rescaled_weights(view.ops, view.groups, factors, self.tensor)
        graph = self.graph.with_constants(self.described.in_file(changed))
        return LitertSession(graph, self.config, self._offered)

    def carry_out(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> LitertCandidate:
        """Write the model anew, each op in its precision."""
        view = self.describe()
        model, emission = self._float
        if parameters:
            emission = Emission(self.described, parameters)
            model = emission.model(in_codes=self.config.ports == "codes")
        lines = ledger_lines(
            view,
            parameters,
            self.capability(),
            carriers=emission.carried,
            reason=partial(reason_of, recipe),
        )
        return LitertCandidate(
            model, recipe, lines, view.inputs, self.config, emission.bytes
        )

    def reference(self) -> LitertCandidate:
        """Return the model as it was given."""
        return self.carry_out(Recipe({}, backend="litert"), {})

    def check(self) -> None:
        """Refuse a model that LiteRT cannot run.

        Raises:
            ModelError: With what LiteRT says.
        """
        Running(self._float[0], self.config)

    @cached_property
    def _float(self) -> tuple[bytes, Emission]:
        """The model as it is written without a recipe, and what was written."""
        emission = Emission(self.described, {})
        return emission.model(), emission

    def fingerprint(self) -> str:
        """Digest of the model as it is written without a recipe."""
        return hashlib.sha256(self._float[0]).hexdigest()[:16]


def probing(model: Any, config: LitertConfig) -> LitertSession:
    """Return a session that carries out whatever it is asked to: what is offered is found by it."""
    return LitertSession(Graph(model), config, untried())
