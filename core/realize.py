"""From a recipe to numbers: calibrate once, quantize a weight once per scheme.

:class:`Realizer` stands between the space and an adapter. It plans what to observe, runs the single calibration pass,
and turns a recipe into :class:`~octavo.core.adapter.OpParameters`, which ``Session.apply`` only has to carry out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from array_api_compat import array_namespace

from .adapter import Batch, Candidate, Opened, OpParameters, Session
from .algorithms.base import WeightContext
from .errors import DataError, NonFiniteWeight, SchemeError
from .graph import Op
from .numerics.affine import Array, QuantParams, affine_params
from .numerics.tensor import QuantizedTensor
from .recipe import Recipe
from .scheme import OpScheme, PartChoice, QuantSpec
from .space import TuningSpace
from .statistics import Probe, Statistics

if TYPE_CHECKING:
    from .plugins import PluginHost


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A session after a tuple of transforms, with its statistics."""

    session: Session
    statistics: Statistics


class Realizer:
    """Carries recipes out on one session.

    Args:
        opened: The session.
        space: Decides what calibration must observe.
        host: Builds calibrators, algorithms and transforms by name.
    """

    def __init__(self, opened: Opened, space: TuningSpace, host: PluginHost) -> None:
        self.opened = opened
        self.space = space
        self._host = host
        self._weights: dict[tuple[object, ...], QuantizedTensor] = {}
        self._ranges: dict[tuple[object, ...], QuantParams] = {}
        self._prepared: dict[tuple[PartChoice, ...], _Prepared] = {}
        self.statistics: Statistics | None = None
        self.observe_passes = 0
        self.weights_quantized = 0

    def probes(self) -> tuple[Probe, ...]:
        """Return what one calibration pass must observe for any recipe of the space."""
        wanted: dict[Probe, None] = {}
        for unit in self.space.tunable:
            for name in unit.ops:
                op = self.opened.view.by_name[name]
                for scheme in unit.choices:
                    for probe in self._probes_of(op, scheme):
                        wanted[probe] = None
        return tuple(wanted)

    def _probes_of(self, op: Op, scheme: OpScheme) -> Iterable[Probe]:
        if scheme.mode == "static":
            axis = _axis(scheme.input)
            yield from (Probe(value, scheme.calibrator, axis) for value in op.inputs)
            if scheme.output is not None:
                yield from (Probe(value, scheme.calibrator, _axis(scheme.output)) for value in op.outputs)

    def calibrate(self, batches: Iterable[Batch]) -> Statistics:
        """Run the calibration pass. Called once per run.

        Raises:
            DataError: If there is no batch, or a value is not finite.
        """
        self.statistics = Statistics(self.probes(), self._make)
        self.observe_passes += 1
        self.statistics.batches = self.opened.session.observe(batches, self.statistics.values, self.statistics.update)
        if not self.statistics.batches:
            raise DataError("calibration data is empty: give at least one batch (a one-shot generator may be exhausted; pass a factory instead)")
        return self.statistics

    def _make(self, probe: Probe) -> object:
        settings = self._host.read("calibrators", probe.calibrator.table())
        return self._host.part("calibrators", probe.calibrator.kind).build(settings, axis=probe.axis)

    def candidate(self, recipe: Recipe) -> Candidate:
        """Quantize what the recipe asks for, reusing everything already quantized, and apply it."""
        prepared = self._prepare(recipe.transforms)
        return prepared.session.apply(recipe, self.parameters(recipe))

    def parameters(self, recipe: Recipe) -> dict[str, OpParameters]:
        """Return the parameters of every op that is not float.

        Raises:
            SchemeError: If the recipe names an unknown op.
        """
        unknown = [name for name in recipe if name not in self.opened.view.by_name]
        if unknown:
            raise SchemeError(f"the recipe names op {unknown[0]!r}, which this model does not have; was it made for another model?")
        return {name: self._of_op(self.opened.view.by_name[name], recipe[name], recipe.transforms) for name in recipe}

    def _prepare(self, transforms: tuple[PartChoice, ...]) -> _Prepared:
        if transforms not in self._prepared:
            statistics = self.statistics or Statistics((), self._make)
            if transforms:
                raise SchemeError(f"transforms are not available: {', '.join(map(str, transforms))}")
            self._prepared[transforms] = _Prepared(self.opened.session, statistics)
        return self._prepared[transforms]

    def _of_op(self, op: Op, scheme: OpScheme, transforms: tuple[PartChoice, ...]) -> OpParameters:
        weight = self._weight(op, scheme, transforms) if op.weight and scheme.weight else None
        if scheme.mode != "static":
            return OpParameters(scheme, weight)
        inputs = tuple(self._range(v, scheme.input, scheme.calibrator, transforms) for v in op.inputs)
        outputs = tuple(self._range(v, scheme.output, scheme.calibrator, transforms) for v in op.outputs)
        return OpParameters(scheme, weight, inputs, outputs)

    def _range(self, value: str, spec: QuantSpec | None, calibrator: PartChoice, transforms: tuple[PartChoice, ...]) -> QuantParams | None:
        if spec is None:
            return None
        key = (value, spec, calibrator, transforms)
        if key not in self._ranges:
            axis = _axis(spec)
            low, high = self._prepare(transforms).statistics.range(value, calibrator, spec, axis)
            xp = array_namespace(low)
            if axis is None and float(low) == float(high):
                warnings.warn(f"value {value!r} was constant ({float(low):g}) in calibration; its range is widened to include zero", stacklevel=2)
                if float(low) == 0.0:
                    high = xp.ones_like(high)
            self._ranges[key] = affine_params(low, high, spec, axis)
        return self._ranges[key]

    def _weight(self, op: Op, scheme: OpScheme, transforms: tuple[PartChoice, ...]) -> QuantizedTensor:
        assert op.weight is not None and scheme.weight is not None
        key = (op.weight.name, scheme.weight, scheme.algorithm, transforms)
        if key not in self._weights:
            array = self._prepare(transforms).session.tensor(op.weight.name)
            self._weights[key] = self._quantize(op, array, scheme.weight, scheme.algorithm)
            self.weights_quantized += 1
        return self._weights[key]

    def _quantize(self, op: Op, array: Array, spec: QuantSpec, choice: PartChoice) -> QuantizedTensor:
        xp = array_namespace(array)
        assert op.weight is not None
        if not bool(xp.all(xp.isfinite(array))):
            raise NonFiniteWeight(f"weight {op.weight.name!r} of op {op.name!r} holds NaN or Inf; repair it, or keep the op in float with a rule")
        settings = self._host.read("algorithms", choice.table())
        algorithm = self._host.part("algorithms", choice.kind).build(settings)
        axis = op.weight.channel_axis % array.ndim
        moved = xp.astype(xp.moveaxis(array, axis, 0), xp.float32)
        result: QuantizedTensor = algorithm.quantize(xp.reshape(moved, (moved.shape[0], -1)), spec, WeightContext())
        codes = xp.moveaxis(xp.reshape(result.codes, moved.shape), 0, axis)
        params = result.params
        if params.axis is not None:
            params = QuantParams(params.scale, params.zero_point, params.spec, axis)
        return QuantizedTensor(codes, params, result.extra)


def _axis(spec: QuantSpec | None) -> int | None:
    return 1 if spec is not None and spec.granularity == "channel" else None


