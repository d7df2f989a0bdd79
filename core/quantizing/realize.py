"""From a recipe to numbers: calibrate once, quantize a weight once per scheme.

:class:`Realizer` stands between the space and an adapter. It plans what to observe, runs the single calibration pass,
and turns a recipe into :class:`~octavo.core.contract.adapter.OpParameters`, which ``Session.apply`` only has to carry out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from array_api_compat import array_namespace

from octavo.core.calibration.features import FEATURES
from octavo.core.calibration.statistics import Statistics
from octavo.core.calibration.visits import Met, Numbered
from octavo.core.contract.adapter import Batch, Candidate, Opened, OpParameters, Session, Sink
from octavo.core.contract.algorithm import WeightConfig
from octavo.core.contract.calibrator import Observer, Probe
from octavo.core.contract.transform import Rescaling
from octavo.core.errors import DataError, NonFiniteWeight, SchemeError
from octavo.core.numerics.affine import Array, QuantParams, affine_params
from octavo.core.numerics.channels import Changes
from octavo.core.numerics.tensor import QuantizedTensor, compact
from octavo.core.values.coverage import Coverage, account
from octavo.core.values.graph import UNREACHED, HeldWeight, Op
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace

from .float_reasons import why_float
from .gram_pages import GRAM_BYTES, Pages, paged
from .probing import ProbePlan, axis_of
from .rescaled import Prepared, rescaled
from .weights import correct_bias, quantize_weight

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


class Realizer:
    """Carries recipes out on one session.

    Args:
        opened: The session.
        space: Decides what calibration must observe.
        host: Builds calibrators, algorithms and transforms by name.
        non_finite: What to do with a weight that holds NaN or Inf: ``error`` before the first trial, or ``float``,
            which leaves its op in float and says so in the ledger.
        gram_bytes: How much the Gram matrices may take at a time, see :mod:`octavo.core.quantizing.gram_pages`.
    """

    def __init__(
        self,
        opened: Opened,
        space: TuningSpace,
        host: PluginHost,
        *,
        non_finite: Literal["error", "float"] = "error",
        gram_bytes: int = GRAM_BYTES,
    ) -> None:
        self.opened = opened
        self.space = space
        self._host = host
        self._plan = ProbePlan(opened.view, space, host)
        self._non_finite: Literal["error", "float"] = non_finite
        self._gram_bytes = gram_bytes
        self._weights: dict[tuple[object, ...], QuantizedTensor] = {}
        self._biases: dict[tuple[object, ...], Array | None] = {}
        self._ranges: dict[tuple[object, ...], QuantParams] = {}
        self._prepared: dict[tuple[PartChoice, ...], Prepared] = {}
        self._batches: Iterable[Batch] | None = None
        self._watch: Callable[[Iterable[str], Sink], int] | None = None
        self._kept_float: Mapping[str, str] | None = None
        self._met: Met | None = None
        self.statistics: Statistics | None = None
        self.observe_passes = 0
        self.weights_quantized = 0

    # What to observe

    def probes(self) -> tuple[Probe, ...]:
        """Return what one calibration pass must observe for any recipe of the space."""
        return self._plan.after(())

    def calibrate(self, batches: Iterable[Batch]) -> Statistics:
        """Run the calibration pass. Called once per run.

        A recipe whose transforms change values that a calibrator cannot be derived for (any but ``minmax``) costs one
        more pass over those values alone, when it is first met; ``batches`` must then be readable again. So does each page of
        Gram matrices that do not fit in memory together.

        Raises:
            DataError: If there is no batch, or a value is not finite.
            NonFiniteWeight: If a weight that may be quantized holds NaN or Inf.
        """
        self.check_weights()
        self._batches = None if iter(batches) is batches else batches
        probes, pages, kept = self.probes(), None, 0
        if self._batches is not None:
            probes, later = paged(probes, self.opened.view.ops, self._gram_bytes)
            if later:
                pages, kept = (
                    Pages(
                        later, lambda page, changes: self._observed_again(page, changes).observers
                    ),
                    self._gram_bytes,
                )
        numbered = Numbered(batches)
        self._watch = self.opened.session.watcher(numbered, kept)
        self.statistics = Statistics(probes, self._make, pages)
        self._met = Met(numbered, self.statistics.update)
        self._observe(self.statistics, self._met)
        self._prepared.clear()
        return self.statistics

    def _observe(self, statistics: Statistics, sink: Sink | None = None) -> None:
        assert self._watch is not None
        self.observe_passes += 1
        tap = _Tap(sink or statistics.update)
        statistics.batches = self._watch(statistics.values, tap)
        tap.close()
        if not statistics.batches:
            raise DataError(
                "calibration data is empty: give at least one batch (a one-shot generator may be exhausted; pass a factory instead)"
            )

    def _make(self, probe: Probe) -> Observer:
        if probe.rows is not None:
            return FEATURES[probe.calibrator.kind](probe.rows)
        settings = self._host.read("calibrators", probe.calibrator.table())
        built: Observer = self._host.part("calibrators", probe.calibrator.kind).build(
            settings, axis=probe.axis
        )
        return built

    def check_weights(self) -> Mapping[str, str]:
        """Look at every weight that may be quantized, once; called before the first trial.

        Returns:
            Op name -> why it is kept in float; empty unless ``non_finite`` is ``float``.

        Raises:
            NonFiniteWeight: If one holds NaN or Inf; the message names the tensor and the op.
        """
        if self._kept_float is None:
            verdicts: dict[str, bool] = {}
            found: dict[str, str] = {}
            for name in (name for unit in self.space.tunable for name in unit.ops):
                for weight in self.opened.view.by_name[name].weights:
                    if weight.name not in verdicts:
                        verdicts[weight.name] = _all_finite(self.opened.session.tensor(weight.name))
                    if not verdicts[weight.name]:
                        found[name] = f"weight {weight.name!r} holds NaN or Inf"
            if found and self._non_finite == "error":
                name, why = next(iter(found.items()))
                raise NonFiniteWeight(
                    f"{why} (op {name!r}): repair it, keep the op in float with a rule, or set non_finite to 'float'"
                )
            self._kept_float = found
        return self._kept_float

    # From a recipe to parameters

    def candidate(self, recipe: Recipe, *, draft: bool = False) -> Candidate:
        """Quantize what the recipe asks for, reusing everything already quantized, and apply it.

        Args:
            recipe: What is asked for.
            draft: It is for a runner of its session alone.
        """
        kept = {
            name: why for name, why in self.check_weights().items() if not recipe[name].is_float
        }
        kept |= self._unreached(recipe)
        carried = (
            Recipe(
                {n: s for n, s in recipe.schemes.items() if n not in kept},
                recipe.transforms,
                recipe.backend,
            )
            if kept
            else recipe
        )
        session = self._prepare(recipe.transforms).session
        candidate = (session.draft if draft else session.apply)(carried, self.parameters(carried))
        if kept:
            candidate.recipe = recipe
            candidate.ledger = {
                **candidate.ledger,
                **{name: Applied(recipe[name], FLOAT, "kernel", why) for name, why in kept.items()},
            }
        if draft:
            return candidate
        without = [
            n
            for n in carried
            if self._corrects_bias(carried[n])
            and not self.opened.view.by_name[n].bias
            and n in candidate.ledger
        ]
        remarks = {
            n: why
            for n, why in self._prepare(recipe.transforms).remarks.items()
            if n in candidate.ledger
        }
        said_of = (
            dict.fromkeys(without, "it has no bias to correct"),
            remarks,
            self._copies(carried, candidate),
            {n: why for n, why in self._sometimes(carried).items() if n in candidate.ledger},
        )
        for said in filter(None, said_of):
            candidate.ledger = {
                **candidate.ledger,
                **{n: _remarked(candidate.ledger[n], why) for n, why in said.items()},
            }
        self.coverage(candidate)  # holds the ops against the census
        return candidate

    def _unreached(self, recipe: Recipe) -> Mapping[str, str]:
        """Return op -> why it has no range, for static ops that no calibration batch came to: a branch that none took."""
        if self.statistics is None:
            return {}
        found: dict[str, str] = {}
        for name in recipe:
            op, scheme = self.opened.view.by_name.get(name), recipe[name]
            if op is None or scheme.mode != "static":
                continue
            wanted = (*op.inputs, *(op.outputs if scheme.output is not None else ()))
            unseen = [value for value in wanted if value not in self.statistics.seen]
            if unseen:
                batches = self.statistics.batches
                found[name] = (
                    f"{UNREACHED}: none of {batches} batches computed {unseen[0]!r}; it stays float"
                )
        return found

    def coverage(self, candidate: Candidate) -> Coverage:
        """Return what became of each weight of the model in a candidate of this session, or in the float model."""
        return account(
            self.opened.view, candidate.ledger, lambda op: why_float(op, self.opened), self._census
        )

    @cached_property
    def _census(self) -> Sequence[HeldWeight] | None:
        return self.opened.session.census()

    def _sometimes(self, recipe: Recipe) -> Mapping[str, str]:
        """Return static op -> in how many calibration batches it was called, where that is not all: a branch that some took."""
        if self._met is None or self.statistics is None:
            return {}
        found: dict[str, str] = {}
        for name in (n for n in recipe if recipe[n].mode == "static"):
            watched = [
                v for v in self.opened.view.by_name[name].inputs if v in self.statistics.values
            ]
            times = min(
                (self._met.batches.get(value, 0) for value in watched), default=self._met.all
            )
            if times < self._met.all:
                found[name] = f"called in {times} of {self._met.all} calibration batches"
        return found

    def _copies(self, recipe: Recipe, candidate: Candidate) -> Mapping[str, str]:
        """Return op name -> that its codes are a further copy of a weight that another op has in another form."""
        found: dict[str, str] = {}
        view, parameters = self.opened.view, self.parameters(recipe)
        for name in (n for n in recipe if n in candidate.ledger):
            weight, own = view.by_name[name].weight, parameters[name].weight
            if weight is None or own is None:
                continue
            for other in weight.shared_with:
                its = parameters[other].weight if other in parameters else None
                if its is not own:
                    form = f"takes [{recipe[other]}]" if its is not None else "stays float"
                    found[name] = (
                        f"its weight is tied to that of {other!r}, which {form}: a copy of its own, {own.nbytes:,} bytes"
                    )
        return found

    def _corrects_bias(self, scheme: OpScheme) -> bool:
        if scheme.weight is None:
            return False
        settings = self._host.read("algorithms", scheme.algorithm.table())
        return isinstance(settings, WeightConfig) and settings.bias_correction

    def parameters(self, recipe: Recipe) -> dict[str, OpParameters]:
        """Return the parameters of every op that is not float.

        Raises:
            SchemeError: If the recipe names an unknown op, or an algorithm lacks what it needs.
        """
        unknown = [name for name in recipe if name not in self.opened.view.by_name]
        if unknown:
            raise SchemeError(
                f"the recipe names op {unknown[0]!r}, which this model does not have; was it made for another model?"
            )
        prepared = self._prepare(recipe.transforms)
        asked = self._asked(recipe)
        unreached = self._unreached(recipe)
        # In execution order, as pages of Gram matrices are observed; a recipe has its ops in the order of their names.
        return {
            op.name: self._of_op(op, recipe, prepared, asked)
            for op in self.opened.view.ops
            if op.name in recipe.schemes and op.name not in unreached
        }

    def _asked(self, recipe: Recipe) -> dict[str, tuple[QuantSpec, PartChoice, int | None] | None]:
        """How the static consumers of each value want it; None where they differ."""
        found: dict[str, tuple[QuantSpec, PartChoice, int | None] | None] = {}
        for name in recipe:
            scheme, op = recipe[name], self.opened.view.by_name[name]
            if scheme.mode == "static" and scheme.input is not None:
                wish = (scheme.input, scheme.calibrator, axis_of(op, scheme.input))
                for value in op.inputs:
                    found[value] = wish if found.setdefault(value, wish) == wish else None
        return found

    def _of_op(
        self,
        op: Op,
        recipe: Recipe,
        prepared: Prepared,
        asked: Mapping[str, tuple[QuantSpec, PartChoice, int | None] | None],
    ) -> OpParameters:
        scheme = recipe[op.name]
        weight, bias = (
            self._weight(op, recipe, prepared) if op.weight and scheme.weight else (None, None)
        )
        alone = (replace(op, weight=w, bias=None, further=()) for w in op.further if scheme.weight)
        further = tuple(self._weight(one, recipe, prepared)[0] for one in alone)
        if scheme.mode != "static":
            return OpParameters(scheme, weight, bias=bias, further=further)
        assert scheme.input is not None
        wanted = (scheme.input, scheme.calibrator, axis_of(op, scheme.input))
        inputs = tuple(self._range(v, *wanted, prepared.seen_by(op.name, v)) for v in op.inputs)
        outputs: list[QuantParams | None] = []
        for value in op.outputs:
            wish = (
                (scheme.output, scheme.calibrator, axis_of(op, scheme.output))
                if scheme.output is not None
                else asked.get(value)
            )
            if wish is None or (scheme.output is None and _divided_by_readers(op, value, prepared)):
                outputs.append(None)
            else:
                outputs.append(self._range(value, *wish, prepared.seen_by(op.name, value)))
        return OpParameters(scheme, weight, inputs, tuple(outputs), bias, further)

    def _range(
        self,
        value: str,
        spec: QuantSpec,
        calibrator: PartChoice,
        axis: int | None,
        statistics: Statistics,
    ) -> QuantParams:
        together = tuple(
            v for v in self._plan.sharing.get(value, (value,)) if v == value or v in statistics.seen
        )
        observers = tuple(statistics.observer(Probe(v, calibrator, axis)) for v in together)
        # What no transform touches is watched by the same observers before and after it, and has one range.
        key = (observers, spec)
        if key not in self._ranges:
            found = [statistics.range(v, calibrator, spec, axis) for v in together]
            low, high = found[0]
            xp = array_namespace(low)
            for other_low, other_high in found[1:]:
                low, high = xp.minimum(low, other_low), xp.maximum(high, other_high)
            if axis is None and float(low) == float(high):
                warnings.warn(
                    f"value {value!r} was constant ({float(low):g}) in calibration; its range is widened to include zero",
                    stacklevel=2,
                )
                if float(low) == 0.0:
                    high = xp.ones_like(high)
            self._ranges[key] = affine_params(low, high, spec, axis)
        return self._ranges[key]

    def _carried(self, op: Op, recipe: Recipe) -> OpScheme:
        """Return the scheme that the device carries out for an op; ops that share a weight and its spec share its range too."""
        scheme = recipe[op.name]
        assert op.weight is not None
        assert scheme.weight is not None
        for user in self._plan.users(op.weight):
            other = recipe[user.name] if user.name in recipe.schemes else FLOAT
            if other.weight is None or other.weight.whole() != scheme.weight.whole():
                continue
            carried, _ = self.opened.capability.carried(user, other)
            if carried.weight is not None and carried.weight.reduce_range:
                return scheme.variant(weight=scheme.weight.reduced())
        return scheme

    def _weight(
        self, op: Op, recipe: Recipe, prepared: Prepared
    ) -> tuple[QuantizedTensor, Array | None]:
        assert op.weight is not None
        scheme, transforms = self._carried(op, recipe), recipe.transforms
        assert scheme.weight is not None
        # A weight that no transform touches is the original's, quantized once for all of them.
        users = self._plan.users(op.weight)
        touched = any(user.name in prepared.ops for user in users)
        key = (
            op.weight.name,
            op.weight.channel_axis,
            scheme.weight,
            scheme.algorithm,
            transforms if touched else (),
        )
        if key not in self._weights:
            needs = self._plan.needs("algorithms", scheme.algorithm)
            array = prepared.session.tensor(op.weight.name)
            made = quantize_weight(op, users, array, scheme, needs, prepared.seen_by, self._host)
            # Where the codes are a model's own storage they are kept in their bits; integer kernels take them in bytes.
            self._weights[key] = compact(made) if scheme.mode == "weight_only" else made
            self.weights_quantized += 1
        quantized = self._weights[key]
        if not (self._corrects_bias(scheme) and op.bias):
            return quantized, None
        at = (op.name, *key)
        if at not in self._biases:
            array, bias = prepared.session.tensor(op.weight.name), prepared.session.tensor(op.bias)
            self._biases[at] = correct_bias(
                op, array, bias, quantized, prepared.seen_by(op.name, op.inputs[0])
            )
        return quantized, self._biases[at]

    # Transforms

    def session(self, transforms: tuple[PartChoice, ...] = ()) -> Session:
        """Return the float session after ``transforms``; it is made once."""
        return self._prepare(transforms).session

    def _prepare(self, transforms: tuple[PartChoice, ...]) -> Prepared:
        if transforms not in self._prepared:
            if not transforms:
                self._prepared[()] = Prepared(
                    self.opened.session, self.statistics or Statistics((), self._make)
                )
            else:
                self._prepared[transforms] = self._transform(
                    self._prepare(transforms[:-1]), transforms
                )
        return self._prepared[transforms]

    def _transform(self, before: Prepared, transforms: tuple[PartChoice, ...]) -> Prepared:
        choice = transforms[-1]
        needs = {
            "rescale",
            *(n for n in self._plan.needs("transforms", choice) if n.startswith("rescale:")),
        }
        if lacking := sorted(needs - self.opened.capability.features):
            raise SchemeError(
                f"{self.opened.name} offers no {', '.join(lacking)}, which {choice} needs; leave that transform out of the configuration"
            )
        settings = self._host.read("transforms", choice.table())
        rescaling: Rescaling = self._host.part("transforms", choice.kind).build(settings)
        view = self.opened.view
        free = {name: view.by_name[name] for unit in self.space.tunable for name in unit.ops}
        factors = rescaling.factors(view, before.session.tensor, before.statistics, free)
        if not factors:
            warnings.warn(
                f"transform {choice} found nothing to rescale on {self.opened.name}: the recipe runs without it",
                stacklevel=2,
            )
        wanted = frozenset(self._plan.after(transforms))
        after = rescaled(
            before,
            factors,
            view,
            wanted,
            lambda probes, changes: self._observed_after(choice, probes, changes),
        )
        remarks = dict(before.remarks)
        for group in view.groups:
            left = sorted(rescaling.carries - group.takes) if group.kind == "rescale" else ()
            for name in group.members if left else ():
                why = f"{choice.kind}: no {', '.join(left)} over {group.name}, which takes {', '.join(sorted(group.takes))}"
                remarks[name] = "; ".join(filter(None, (remarks.get(name), why)))
        return replace(after, remarks=remarks)

    def _observed_after(
        self, choice: PartChoice, probes: tuple[Probe, ...], changes: Changes
    ) -> Statistics:
        if self._batches is None:
            raise DataError(
                f"after {choice} value {probes[0].value!r} must be observed again for {probes[0].calibrator}, and the calibration "
                "data can be read only once: pass a list or a factory, or calibrate with minmax, whose ranges are derived"
            )
        return self._observed_again(probes, changes)

    def _observed_again(self, probes: tuple[Probe, ...], changes: Changes) -> Statistics:
        """Observe values of the original model once more, changed as the rescaled one has them."""
        fresh = Statistics(probes, self._make)

        def sink(value: str, x: Array) -> None:
            maps, axis = changes.get(value, ((), -1))
            for change in maps:
                x = change.apply(x, axis)
            fresh.update(value, x)

        self._observe(fresh, sink)
        return fresh


class _Tap:
    """A sink that lets go of what it feeds: an adapter's runner may live on in a cycle of references, and what was seen with it."""

    def __init__(self, sink: Sink) -> None:
        self._sink: Sink | None = sink

    def __call__(self, value: str, x: Array) -> None:
        if self._sink is not None:
            self._sink(value, x)

    def close(self) -> None:
        self._sink = None


def _remarked(line: Applied, why: str) -> Applied:
    return replace(line, reason="; ".join(filter(None, (line.reason, why))))


def _divided_by_readers(op: Op, value: str, prepared: Prepared) -> bool:
    """True if readers change a value themselves, so that they do not take the codes that its writer would write."""
    return any(
        value in state.seers and op.name not in state.seers[value] for state in prepared.states()
    )


def _all_finite(array: Array) -> bool:
    xp = array_namespace(array)
    # NaN and Inf survive into the extremes; no temporary of the weight's size is made.
    return 0 in array.shape or bool(xp.isfinite(xp.max(array)) & xp.isfinite(xp.min(array)))
