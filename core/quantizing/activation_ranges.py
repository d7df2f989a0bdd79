"""Quantization parameters of activations, out of what calibration saw of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from array_api_compat import array_namespace

from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.calibrator import Probe
from octavo.core.numerics.affine import Array, QuantParams, affine_params
from octavo.core.numerics.layout import to_matrix
from octavo.core.system.log import remark
from octavo.core.values.graph import ModelView, Op
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec

from .probing import axis_of
from .rescaled import Prepared


class Wish(NamedTuple):
    """How an op wants a value quantized."""

    spec: QuantSpec
    calibrator: PartChoice
    axis: int | None


def wish_of(op: Op, scheme: OpScheme, spec: QuantSpec) -> Wish:
    """Return how an op wants its inputs or its outputs under a spec of its scheme."""
    return Wish(spec, scheme.calibrator, axis_of(op, spec))


def wishes_of_readers(view: ModelView, recipe: Recipe) -> Mapping[str, Wish | None]:
    """Return how the static consumers of each value want it; None where they differ."""
    found: dict[str, Wish | None] = {}
    for name in recipe:
        scheme = recipe[name]
        if scheme.mode != "static" or scheme.input is None:
            continue
        op = view.by_name[name]
        wish = wish_of(op, scheme, scheme.input)
        for value in op.inputs:
            agrees = found.setdefault(value, wish) == wish
            found[value] = wish if agrees else None
    return found


class ActivationRanges:
    """Parameters by value, spec and what was observed; each is chosen once.

    Args:
        sharing: Value -> all values that share its scale.
        readers: Value that shares its scale -> the op for whose sake it does (a concat, an add).
        view: The model, for calibrators that ask who reads a value.
    """

    def __init__(
        self,
        sharing: Mapping[str, Sequence[str]],
        readers: Mapping[str, str] = MappingProxyType({}),
        view: ModelView | None = None,
    ) -> None:
        self._sharing = sharing
        self._readers = readers
        self._view = view
        self._params: dict[tuple[object, ...], QuantParams] = {}

    def of_inputs(
        self, op: Op, scheme: OpScheme, prepared: Prepared
    ) -> tuple[QuantParams, ...]:
        """Return the parameters of each input of an op with a static scheme."""
        assert scheme.input is not None
        wish = wish_of(op, scheme, scheme.input)
        return tuple(self._of(op, v, wish, prepared) for v in op.inputs)

    def of_outputs(
        self,
        op: Op,
        scheme: OpScheme,
        prepared: Prepared,
        readers: Mapping[str, Wish | None],
    ) -> tuple[QuantParams | None, ...]:
        """Return the parameters of each output of an op with a static scheme; None where it stays.

        An output takes what its op's scheme says, else what all its static readers want alike.
        """
        found: list[QuantParams | None] = []
        for value in op.outputs:
            if scheme.output is not None:
                wish: Wish | None = wish_of(op, scheme, scheme.output)
            else:
                divided = _divided_by_readers(op, value, prepared)
                wish = None if divided else readers.get(value)
            if wish is None:
                found.append(None)
            else:
                found.append(self._of(op, value, wish, prepared))
        return tuple(found)

    def _of(self, op: Op, value: str, wish: Wish, prepared: Prepared) -> QuantParams:
        seen: dict[str, Statistics] = {}
        for other in self._sharing.get(value, (value,)):
            # The others are met by whoever makes them share: a transform may have changed them for
            # members of its own group alone.
            reads = other == value or other in op.inputs
            meets = op.name if reads else self._readers.get(other, op.name)
            statistics = prepared.seen_by(meets, other)
            if other == value or other in statistics.seen:
                seen[other] = statistics
        observers = tuple(
            statistics.observer(Probe(other, wish.calibrator, wish.axis))
            for other, statistics in seen.items()
        )
        # What no transform touches is watched by the same observers before and after it, and has
        # one range.
        key = (observers, wish.spec)
        if key not in self._params:
            low, high = self._joined_range(seen, wish, prepared)
            if wish.axis is None and float(low) == float(high):
                high = _widened(value, low, high)
            self._params[key] = affine_params(low, high, wish.spec, wish.axis)
        return self._params[key]

    def _joined_range(
        self, values: Mapping[str, Statistics], wish: Wish, prepared: Prepared
    ) -> tuple[Array, Array]:
        """Return the range that holds those of all values, each as it was seen."""
        found = []
        for value, statistics in values.items():
            readers = partial(self._weights_on, value, statistics, prepared)
            found.append(
                statistics.range(value, wish.calibrator, wish.spec, wish.axis, readers)
            )
        low, high = found[0]
        xp = array_namespace(low)
        for other_low, other_high in found[1:]:
            low = xp.minimum(low, other_low)
            high = xp.maximum(high, other_high)
        return low, high

    def _weights_on(
        self, value: str, statistics: Statistics, prepared: Prepared
    ) -> list[Array]:
        """Return the weights of the linear ops that meet a value as it was seen."""
        found = []
        for op in self._view.ops if self._view is not None else ():
            if op.type != "linear" or op.weight is None or op.inputs[:1] != (value,):
                continue
            if prepared.seen_by(op.name, value) is statistics:
                array = prepared.session.tensor(op.weight.name)
                matrix = to_matrix(array, op.weight.channel_axis)
                xp = array_namespace(matrix)
                found.append(xp.astype(matrix, xp.float32))
        return found


def _widened(value: str, low: Array, high: Array) -> Array:
    """Return the upper end of a constant's range; that of zero takes in one."""
    remark(
        f"value {value!r} was constant ({float(low):g}) in calibration; "
        "its range is widened to include zero",
        "quantizing",
    )
    return array_namespace(high).ones_like(high) if float(low) == 0.0 else high


def _divided_by_readers(op: Op, value: str, prepared: Prepared) -> bool:
    """True if readers change a value themselves.

    They do not take the codes that its writer would write.
    """
    return any(
        value in state.seers and op.name not in state.seers[value]
        for state in prepared.states()
    )
