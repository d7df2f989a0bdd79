"""One opened ONNX model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.apply.emit import emit
from octavo.adapters.onnx.apply.qoperator import to_operators
from octavo.adapters.onnx.apply.rescaling import rescale
from octavo.adapters.onnx.describe.census import census
from octavo.adapters.onnx.describe.finite import refuse_non_finite
from octavo.adapters.onnx.describe.owners import Owners, owners_in
from octavo.adapters.onnx.describe.sites import find_sites
from octavo.adapters.onnx.describe.streams import find_streams
from octavo.adapters.onnx.files.fingerprint import digest
from octavo.adapters.onnx.kernels.ledger import Decided, ExecutedLedger, float_line
from octavo.adapters.onnx.observe.passes import Observed, observe
from octavo.adapters.onnx.observe.prefix_reuse import Reuse
from octavo.adapters.onnx.observe.revision import OnnxRevision
from octavo.adapters.onnx.prepare.constants import constant
from octavo.adapters.onnx.prepare.preparation import prepare
from octavo.core.contract.adapter import Batch, OpParameters, Session, Sink
from octavo.core.errors import ModelError, nearest
from octavo.core.numerics.channels import Factors
from octavo.core.values.capability import Capability
from octavo.core.values.coverage import unclaimed_of
from octavo.core.values.graph import Group, HeldWeight, ModelView
from octavo.core.values.recipe import Recipe

from . import OnnxConfig
from .candidate import OnnxCallable, OnnxCandidate
from .offers import capability


class OnnxSession(Session):
    """A model prepared for quantization, beside the model as it was given.

    Args:
        source: The checked model; never changed.
        config: The card's settings.
        prepared: The same model, already prepared; None prepares it here.
        groups: Of the model as it was opened, where ``prepared`` is rescaled: nodes may lie between
            their ends now.
    """

    def __init__(
        self,
        source: ir.Model,
        config: OnnxConfig,
        prepared: ir.Model | None = None,
        groups: tuple[Group, ...] | None = None,
    ) -> None:
        self.config = config
        self._source = source
        # The source stays as it was given: the reference runs it, and the fingerprint is its.
        self._prepared = prepared if prepared is not None else prepare(source.clone())
        self._sites = find_sites(self._prepared.graph)
        self._observed: Observed | None = None
        self._census = census(self._prepared.graph)
        found = self._sites.view
        self._view = replace(
            found,
            unclaimed=unclaimed_of(self._census, found.ops),
            groups=found.groups if groups is None else groups,
        )

    def check(self) -> None:
        """Refuse parameters that hold NaN or Inf, where no setting can keep them out of the way.

        Raises:
            NonFiniteWeight: The message names the tensor and the op.
        """
        refuse_non_finite(self._sites)

    def describe(self) -> ModelView:
        """Return the ops, values and groups."""
        return self._view

    def capability(self) -> Capability:
        """Return what ONNX Runtime's integer kernels carry out, established on one-op models."""
        types = set()
        for site in self._sites.sites.values():
            if not site.op.out_of_reach:
                types.add(site.kind)
        return capability(self.config, types)

    def observe(
        self, batches: Iterable[Batch], values: Iterable[str], sink: Sink
    ) -> int:
        """Run the float model over the batches; intermediate values become extra outputs."""
        wanted = tuple(values)
        self._observed = observe(self._prepared, self.config, batches, wanted, sink)
        return self._observed.batches

    def tensor(self, name: str) -> np.ndarray:
        """Return an initializer of the prepared model, or a folded batch norm's gain or shift."""
        initializers = self._prepared.graph.initializers
        array = constant(initializers.get(name))
        if array is None:
            array = self._folded_norms.get(name)
        if array is None:
            raise ModelError(
                f"the model has no tensor {name!r}{nearest(name, initializers)}"
            )
        return array

    @cached_property
    def _folded_norms(self) -> Mapping[str, np.ndarray]:
        """What groups name of batch norms that are folded, by its name."""
        found: dict[str, np.ndarray] = {}
        for stream in find_streams(self._sites.outside):
            found.update(stream.norm_tensors())
        return found

    def carry_out(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> OnnxCandidate:
        """Carry a recipe out and read in the optimized graph what became of each op."""
        candidate = self._written(recipe, parameters)
        # Reading the lines compiles the model now.
        return candidate.with_ledger(dict(candidate.ledger))

    def draft(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> OnnxCandidate:
        """Carry a recipe out.

        ONNX Runtime is given the model when it is run or its ledger is read.
        """
        self.refuse_unoffered(parameters)
        return self._written(recipe, parameters)

    def _written(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> OnnxCandidate:
        quantized: dict[str, OpParameters] = {}
        static: list[str] = []
        for name, given in parameters.items():
            if given.scheme.mode == "static":
                static.append(name)
            if not given.scheme.is_float:
                quantized[name] = given
        model, emitted = emit(self._prepared, self._sites, quantized)
        paired: Mapping[str, str] = {}
        if self.config.form == "qoperator":
            paired = to_operators(model, [emitted[name].node for name in static])
        decided = Decided(self._sites.sites, parameters, emitted, paired)
        ledger = ExecutedLedger(model, self.config, decided)
        # One session for both: the one whose optimized graph the ledger reads runs the candidate.
        native = OnnxCallable(model, self.config, lambda: ledger.compiled)
        return OnnxCandidate(native, recipe, ledger, self._owners)

    @cached_property
    def _owners(self) -> Owners:
        return owners_in(self._sites)

    def census(self) -> Sequence[HeldWeight]:
        """Return the floating constants that the prepared model's outputs depend on.

        Those of two or more dimensions.
        """
        return self._census

    def runner(self, batches: Sequence[Batch]) -> Reuse:
        """Return what starts each candidate at the last narrow place before its first change."""
        # Written as candidates are, so that what no recipe touches is the same node in both.
        unchanged, _ = emit(self._prepared, self._sites, {})
        return Reuse(unchanged, self.config, batches)

    def rescale(self, factors: Mapping[str, Factors]) -> OnnxSession:
        """Return a session with other channels and the same function.

        Every other tensor is shared.
        """
        groups = self._view.groups
        rescaled = rescale(self._prepared, self._sites, groups, factors)
        return OnnxSession(self._source, self.config, rescaled, groups)

    def revision(self, batches: Iterable[Batch], limit: int) -> OnnxRevision:
        """Return a model whose weights may be replaced (feature ``revision``)."""
        return OnnxRevision(self._prepared, self.config, batches)

    def reference(self) -> OnnxCandidate:
        """Return the model as it was given."""
        ledger = {name: float_line(site) for name, site in self._sites.sites.items()}
        native = OnnxCallable(self._source, self.config)
        return OnnxCandidate(native, Recipe(backend="onnx"), ledger)

    def fingerprint(self) -> str:
        """Digest of structure and weights of the source."""
        return digest(self._source)

    def facts(self) -> tuple[str, ...]:
        """Return what calibration held in memory, once it has run."""
        if self._observed is not None:
            return (str(self._observed),)
        return ()
