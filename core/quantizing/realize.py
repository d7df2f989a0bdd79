"""From a recipe to numbers: calibrate once, quantize a weight once per scheme.

:class:`Realizer` stands between the space and an adapter. It plans what to observe, runs the single
calibration pass, and turns a recipe into :class:`~octavo.core.contract.adapter.OpParameters`, which
``Session.apply`` only has to carry out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.adapter import Batch, Candidate, Opened, OpParameters, Session
from octavo.core.contract.calibrator import Probe
from octavo.core.errors import SchemeError
from octavo.core.numerics.channels import Change
from octavo.core.values.coverage import Coverage, account
from octavo.core.values.graph import HeldWeight, Op
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice
from octavo.core.values.space import TuningSpace
from octavo.core.values.topology import scale_sharers

from .accounting import (
    Ledger,
    Remarks,
    orders_of_transforms,
    reached_by_some,
    refuse_repairs,
    remarked,
    repaired,
    second_copies,
    unreached,
    with_kept,
    without_repair,
)
from .activation_ranges import ActivationRanges, Wish, wishes_of_readers
from .float_reasons import why_float, why_neighbours_refuse
from .gram_pages import GRAM_BYTES
from .non_finite import non_finite_ops, refuse
from .observing import Observation
from .paired_inputs import PairedWalk
from .probing import ProbePlan
from .recovering import Recovering, TrainFn
from .rescaled import Prepared
from .transforming import TransformedSessions
from .weight_cache import QuantizedWeights

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


class Realizer:
    """Carries recipes out on one session.

    Args:
        opened: The session.
        space: Decides what calibration must observe.
        host: Builds calibrators, algorithms and transforms by name.
        non_finite: What to do with a weight that holds NaN or Inf: ``error`` before the first
            trial, or ``float``, which leaves its op in float and says so in the ledger.
        gram_bytes: How much the Gram matrices may take at a time, see
            :mod:`octavo.core.quantizing.gram_pages`.
        train_fn: Trains the backend's own model and returns it, for recipes that ask for ``qat``;
            None where there is no such function.

    Attributes:
        observation: What calibration saw, and how often it read the batches.
        recovering: Learns what recipes ask for after quantization.
    """

    def __init__(
        self,
        opened: Opened,
        space: TuningSpace,
        host: PluginHost,
        *,
        non_finite: Literal["error", "float"] = "error",
        gram_bytes: int = GRAM_BYTES,
        train_fn: TrainFn | None = None,
    ) -> None:
        self.opened = opened
        self.space = space
        self.observation = Observation(opened, host, gram_bytes)
        self._plan = ProbePlan(opened.view, space, host)
        self._states = TransformedSessions(
            opened, space, host, self._plan, self.observation
        )
        self._weights = QuantizedWeights(opened, host, self._plan, self.observation)
        self._ranges = ActivationRanges(
            self._plan.sharing, scale_sharers(opened.view), opened.view
        )
        self._non_finite: Literal["error", "float"] = non_finite
        self.recovering = Recovering(opened, train_fn)

    @property
    def statistics(self) -> Statistics | None:
        """What the calibration pass saw; None before it."""
        return self.observation.statistics

    @property
    def observe_passes(self) -> int:
        """How often the calibration batches were read."""
        return self.observation.passes

    @property
    def weights_quantized(self) -> int:
        """Number of weights that were quantized; what is used again counts once."""
        return self._weights.made

    # Before the first recipe

    def probes(self) -> tuple[Probe, ...]:
        """Return what one calibration pass must observe for any recipe of the space."""
        return self._plan.after(())

    def calibrate(self, batches: Iterable[Batch]) -> Statistics:
        """Run the calibration pass. Called once per run.

        A recipe whose transforms change values that a calibrator cannot be derived for (any but
        ``minmax``) costs one more pass over those values alone, when it is first met; ``batches``
        must then be readable again. So does each page of Gram matrices that do not fit in memory
        together.

        Raises:
            DataError: If there is no batch, or a value is not finite.
            NonFiniteWeight: If a weight that may be quantized holds NaN or Inf.
            SchemeError: If the backend lacks what a transform that every recipe has needs.
        """
        self.check_weights()
        self._states.check_required()
        statistics = self.observation.calibrate(batches, self.probes())
        self.recovering.batches = self.observation.batches
        self._states.forget()
        return statistics

    def check_weights(self) -> Mapping[str, str]:
        """Look at every weight that may be quantized, once; called before the first trial.

        Returns:
            Op name -> why it is kept in float; empty unless ``non_finite`` is ``float``.

        Raises:
            NonFiniteWeight: If one holds NaN or Inf; the message names the tensor and the op.
        """
        if self._non_finite == "error":
            refuse(self._non_finite_ops)
        return self._non_finite_ops

    @cached_property
    def _non_finite_ops(self) -> Mapping[str, str]:
        return non_finite_ops(self.opened, self.space)

    # From a recipe to a model

    def candidate(self, recipe: Recipe, *, draft: bool = False) -> Candidate:
        """Quantize what the recipe asks for, reusing everything already quantized, and apply it.

        What its recovery names is learned then, once where learned models are kept
        (:mod:`.recovering`).

        Args:
            recipe: What is asked for.
            draft: It is for a runner of its session alone; nothing is learned.

        Raises:
            ConfigError: If its recovery is unknown, or cannot be carried out with what was given.
            SchemeError: If an op is unknown, or cannot be carried out or learned.
            DataError: If its recovery lacks calibration data.
        """
        if recipe.recovery and not draft:
            return self._recovered(recipe)
        return self._carried_out(recipe, draft=draft)

    def _recovered(self, recipe: Recipe) -> Candidate:
        found = self.recovering.known(recipe)
        if found is not None:
            return found
        self.recovering.check(recipe)
        made = self._carried_out(recipe)
        self.recovering.keep(made)
        return made

    def _carried_out(self, recipe: Recipe, *, draft: bool = False) -> Candidate:
        kept = self._kept_float(recipe)
        carried = recipe.without(kept)
        parameters = self.parameters(carried)
        session = self.session(recipe.transforms)
        if draft:
            made = session.draft(carried, parameters)
        elif recipe.recovery:
            made = self.recovering.candidate(session, carried, parameters)
        else:
            made = session.apply(carried, parameters)
        # A draft's ledger may cost what drafting saved: it is read only where lines must be added.
        if draft and not kept:
            return made
        ledger = with_kept(made.ledger, recipe, kept)
        if not draft:
            ledger = remarked(ledger, self._remarks(carried, parameters))
            self._coverage(ledger)  # holds the ops against the census
        return made.with_ledger(ledger, recipe)

    def _kept_float(self, recipe: Recipe) -> Remarks:
        """Return op -> why it stays float though the recipe quantizes it."""
        not_finite = {
            n: why for n, why in self.check_weights().items() if not recipe[n].is_float
        }
        kept = {**not_finite, **self._unreached(recipe)}
        return {**kept, **why_neighbours_refuse(self.opened, recipe.without(kept))}

    def _unreached(self, recipe: Recipe) -> Remarks:
        seen = self.statistics
        return unreached(self.opened.view, recipe, seen) if seen is not None else {}

    def _remarks(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> Iterator[Remarks]:
        """Yield what the ledger says of ops that are carried out, in the order in which it does."""
        view = self.opened.view
        corrected = (n for n in recipe if self._weights.corrects_bias(recipe[n]))
        without = [n for n in corrected if not view.by_name[n].bias]
        yield dict.fromkeys(without, "it has no bias to correct")
        state = self._states.after(recipe.transforms)
        yield state.remarks
        if len(recipe.transforms) > 1:
            yield orders_of_transforms(state.steps)
        yield second_copies(view, recipe, parameters)
        yield repaired(parameters)
        yield without_repair(self.opened, recipe)
        seen = self.statistics
        met = self.observation.met
        if seen is not None and met is not None:
            yield reached_by_some(view, recipe, seen, met)

    def coverage(self, candidate: Candidate) -> Coverage:
        """Return what became of each weight in a candidate, or in the float model."""
        return self._coverage(candidate.ledger)

    def _coverage(self, ledger: Ledger) -> Coverage:
        return account(
            self.opened.view,
            ledger,
            lambda op: why_float(op, self.opened),
            self._census,
        )

    @cached_property
    def _census(self) -> Sequence[HeldWeight] | None:
        return self.opened.session.census()

    def session(self, transforms: tuple[PartChoice, ...] = ()) -> Session:
        """Return the float session after ``transforms``; it is made once."""
        return self.prepared(transforms).session

    def prepared(self, transforms: tuple[PartChoice, ...]) -> Prepared:
        """Return the session after ``transforms``, with what calibration would have seen of it."""
        return self._states.after(transforms)

    def change(self, op: str, value: str, transforms: tuple[PartChoice, ...]) -> Change:
        """Return what ``transforms`` do to a value of the original model before an op meets it."""
        return self.prepared(transforms).change(op, value)

    # From a recipe to parameters

    def parameters(self, recipe: Recipe) -> dict[str, OpParameters]:
        """Return the parameters of every op that is not float.

        Raises:
            SchemeError: If the recipe names an unknown op, an algorithm lacks what it needs, or the
                backend cannot carry out a low-rank repair.
        """
        view = self.opened.view
        unknown = [name for name in recipe if name not in view.by_name]
        if unknown:
            raise SchemeError(
                f"the recipe names op {unknown[0]!r}, which this model does not have; "
                "was it made for another model?"
            )
        refuse_repairs(self.opened, recipe)
        prepared = self.prepared(recipe.transforms)
        readers = wishes_of_readers(view, recipe)
        without_range = self._unreached(recipe)
        walk = self._weights.walk(recipe, prepared)
        # In execution order, as pages of Gram matrices are observed; a recipe has its ops in the
        # order of their names.
        return {
            op.name: self._of_op(op, recipe, prepared, readers, walk)
            for op in view.ops
            if op.name in recipe.schemes and op.name not in without_range
        }

    def _of_op(
        self,
        op: Op,
        recipe: Recipe,
        prepared: Prepared,
        readers: Mapping[str, Wish | None],
        walk: PairedWalk | None,
    ) -> OpParameters:
        scheme = recipe[op.name]
        weights = self._weights.of(op, recipe, prepared, walk)
        is_static = scheme.mode == "static"
        inputs = self._ranges.of_inputs(op, scheme, prepared) if is_static else ()
        outputs = (
            self._ranges.of_outputs(op, scheme, prepared, readers) if is_static else ()
        )
        return OpParameters(
            scheme, weights.first, inputs, outputs, weights.bias, weights.further
        )
