"""One opened NumPy graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from octavo.adapters.numpy.apply.lowering import quantized
from octavo.adapters.numpy.apply.rescaling import rescaled
from octavo.adapters.numpy.describe.census import census
from octavo.adapters.numpy.describe.groups import norm_tensors
from octavo.adapters.numpy.describe.ops import describe
from octavo.adapters.numpy.kernels.casting import plain
from octavo.adapters.numpy.kernels.fallback import REASON, native
from octavo.adapters.numpy.observe.passes import observe, trace
from octavo.adapters.numpy.observe.prefix_reuse import Reuse
from octavo.adapters.numpy.observe.revision import NumpyRevision
from octavo.adapters.numpy.run.kernels import Kernels
from octavo.adapters.numpy.run.program import Program
from octavo.core.contract.adapter import Batch, OpParameters, Session, Sink
from octavo.core.errors import ModelError, SchemeError, nearest
from octavo.core.numerics.channels import Factors
from octavo.core.values.capability import Capability
from octavo.core.values.graph import Group, HeldWeight, ModelView
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT

from .candidate import NumpyCandidate
from .graph import Graph
from .offers import OFFERS, capability

_PACKED = (
    "codes stay packed and are unpacked inside the operator; its arithmetic is float"
)


class NumpySession(Session):
    """One opened graph, optimised.

    Args:
        graph: As :func:`.prepare.rewrites.optimised` returns it.
        kernels: Shared with every candidate.
        example: One batch, for shapes.
        groups: Of the graph as it was opened, where this one is rescaled: nodes may lie between
            their ends now.
    """

    def __init__(
        self,
        graph: Graph,
        kernels: Kernels,
        example: Batch | None = None,
        groups: tuple[Group, ...] | None = None,
    ) -> None:
        self.graph = graph
        self._groups = groups
        self._kernels = kernels
        kernels.keep(graph.nodes)
        self._program = Program(graph, kernels)
        self._example = example
        self._view: ModelView | None = None
        self._facts: tuple[str, ...] = ()
        self._fingerprint = ""
        self._foreign = {n.name for n in graph.nodes if not native(n, graph.opset)}

    def describe(self) -> ModelView:
        """Return the ops of the optimised graph."""
        if self._view is None:
            shapes, self._facts = trace(self._program, self._example)
            view = describe(self.graph, shapes)
            self._view = (
                view if self._groups is None else replace(view, groups=self._groups)
            )
        return self._view

    def facts(self) -> tuple[str, ...]:
        """Return what the memory plan comes to."""
        self.describe()
        return self._facts

    def capability(self) -> Capability:
        """Integer arithmetic on linear and convolution layers; exact on any processor."""
        return capability()

    def observe(
        self, batches: Iterable[Batch], values: Iterable[str], sink: Sink
    ) -> int:
        """Run the float graph once over the batches."""
        return observe(self._program, batches, values, sink)

    def tensor(self, name: str) -> np.ndarray:
        """Return an initializer, or the gain or shift of a folded batch norm."""
        known = self.graph.initializers
        array = known.get(name)
        if array is None:
            array = self._folded_norms.get(name)
        if array is None:
            raise ModelError(f"the graph has no tensor {name!r}{nearest(name, known)}")
        return plain(array)

    @cached_property
    def _folded_norms(self) -> Mapping[str, np.ndarray]:
        """What groups name of batch norms that are folded, by its name."""
        return norm_tensors(self.graph, self.describe().groups)

    def carry_out(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> NumpyCandidate:
        """Replace the named ops by integer ones."""
        ledger = self._ledger(recipe, parameters)
        kept = {name: parameters[name] for name in recipe}
        known = frozenset(node.name for node in self.graph.nodes)
        lowered = quantized(self.graph, kept)
        return NumpyCandidate(lowered, recipe, ledger, self._kernels, known)

    def _ledger(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> dict[str, Applied]:
        """Return what becomes of each op that a recipe could name, and why some stay float."""
        view, offered = self.describe(), self.capability()
        ledger: dict[str, Applied] = {}
        for op in view.ops:
            scheme = recipe[op.name]
            if scheme.is_float:
                is_foreign = op.name in self._foreign
                if op.type in OFFERS or op.out_of_reach or is_foreign:
                    reason = REASON if is_foreign else op.out_of_reach
                    ledger[op.name] = Applied(FLOAT, FLOAT, reason=reason)
                continue
            realization = offered.realization(op, scheme)
            if op.name not in parameters:
                raise SchemeError(
                    f"op {op.name!r} is to run as [{scheme}], but no parameters were given for it"
                )
            reason = _PACKED if scheme.mode == "weight_only" else ""
            ledger[op.name] = Applied(scheme, scheme, realization, reason)
        return ledger

    def census(self) -> Sequence[HeldWeight]:
        """Return the floating constants of two or more dimensions that the outputs depend on."""
        return census(self.graph)

    def runner(self, batches: Sequence[Batch]) -> Reuse:
        """Return what runs candidates over the same batches, from the first changed node on."""
        arrays = [self._program.feed(batch) for batch in batches]
        return Reuse(self.graph, self._program, self._kernels, arrays)

    def revision(self, batches: Iterable[Batch], limit: int) -> NumpyRevision:
        """Return a graph whose weights may be replaced (feature ``revision``)."""
        return NumpyRevision(self.graph, self._kernels, batches)

    def reference(self) -> NumpyCandidate:
        """Return the float graph, batch norms folded and activations fused."""
        return self.carry_out(Recipe({}, backend="numpy"), {})

    def fingerprint(self) -> str:
        """Digest of the optimised graph."""
        if not self._fingerprint:
            self._fingerprint = self.graph.fingerprint()
        return self._fingerprint

    def rescale(self, factors: Mapping[str, Factors]) -> NumpySession:
        """Change the values of the groups and their readers' weights."""
        groups = self.describe().groups
        changed = rescaled(self.graph, groups, factors)
        return NumpySession(changed, self._kernels, self._example, groups)
