"""Ops whose result is an output of the model: there the kit sees what one op computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octavo.core.authoring.reference import forward, rounded, rounded_forward
from octavo.core.contract.adapter import Batch, Candidate, Opened, OpParameters
from octavo.core.numerics.arrays import to_numpy
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.graph import Op
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace, Unit

from .case import AdapterCase, Arrays, outputs, rms

Tail = Callable[[np.ndarray], np.ndarray]
"""What the runtime fused behind the op, and in which order of axes it puts the result out."""


def _nothing(y: np.ndarray) -> np.ndarray:
    return y


def _relu(y: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(y, 0))


def _channels_last(y: np.ndarray) -> np.ndarray:
    """Return what a runtime writes that keeps the channels of images last."""
    return np.moveaxis(y, 1, -1) if y.ndim > 2 else y


def _relu_channels_last(y: np.ndarray) -> np.ndarray:
    return _channels_last(_relu(y))


TAILS: tuple[Tail, ...] = (_nothing, _relu, _channels_last, _relu_channels_last)
SAME = 1e-3
"""Share of a float result by which the kit's own float64 may differ from it."""


@dataclass(frozen=True)
class Bench:
    """A case that is opened and calibrated, with its space.

    Attributes:
        case: The case.
        opened: Its model.
        space: Everything that the adapter offers.
        realizer: Calibrated.
    """

    case: AdapterCase
    opened: Opened
    space: TuningSpace
    realizer: Realizer

    def offers(self, op: Op) -> tuple[OpScheme, ...]:
        """Return every scheme but float of an op that is decided by itself."""
        unit = self._unit(op)
        return unit.choices[:-1] if unit is not None else ()

    def candidate(
        self, op: Op, scheme: OpScheme
    ) -> tuple[Candidate, Mapping[str, OpParameters]]:
        """Return the model with that one op quantized, and what was decided."""
        recipe, decided = self.decisions(op, scheme)
        return self.opened.session.apply(recipe, decided), decided

    def decisions(
        self, op: Op, scheme: OpScheme
    ) -> tuple[Recipe, Mapping[str, OpParameters]]:
        """Return the recipe that quantizes that one op, and what the core decides for it."""
        unit = self._unit(op)
        assert unit is not None
        recipe = self.space.recipe({unit.name: scheme})
        return recipe, self.realizer.parameters(recipe)

    def _unit(self, op: Op) -> Unit | None:
        for unit in self.space.units:
            if tuple(unit.ops) == (op.name,):
                return unit
        return None


def bench_of(case: AdapterCase) -> Bench:
    """Open and calibrate a case."""
    opened = case.open()
    space = build_space(opened, simulated=True)
    return Bench(case, opened, space, case.realizer(opened, space))


@dataclass(frozen=True)
class Visible:
    """An op whose result is an output of its model.

    Attributes:
        bench: Where it stands.
        op: The op.
        seen: What it reads, for each batch, float64.
        place: Which output of the model it writes.
        tail: What is fused behind it, and the order of the axes.
    """

    bench: Bench
    op: Op
    seen: Sequence[Arrays]
    place: int
    tail: Tail

    def got(self, candidate: Candidate) -> np.ndarray:
        """Return what a candidate writes there, for all batches, flat."""
        return self._flat(_outputs(self, candidate))

    def exact(self) -> np.ndarray:
        """Return the kit's own float result, flat."""
        found = [_float(self.bench.opened, self.op, x) for x in self.seen]
        return self._flat([self.tail(y) for y in found if y is not None])

    def rounded(
        self, decided: OpParameters, *, float_inputs: bool = False
    ) -> np.ndarray | None:
        """Return what must be written with these decisions, flat; None if unknown.

        Args:
            decided: What the core decided.
            float_inputs: As if the inputs stayed float.
        """
        bias = _bias(self.bench.opened, self.op)
        found = []
        for x in self.seen:
            y = rounded_forward(self.op, x, decided, bias, float_inputs=float_inputs)
            if y is None:
                return None
            y = self.tail(y)
            grid = decided.outputs[0] if decided.outputs else None
            found.append(y if grid is None else rounded(y, grid))
        return self._flat(found)

    @staticmethod
    def _flat(found: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([y.ravel() for y in found])


def visible_ops(bench: Bench) -> Iterator[Visible]:
    """Yield each op of a bench that writes an output whose float formula is known.

    Raises:
        AssertionError: If an op that is the whole model does not compute what ``describe``,
            ``tensor`` and ``observe`` say of it.
    """
    opened = bench.opened
    names = list(opened.view.outputs)
    for op in opened.view.ops:
        is_output = len(op.outputs) == 1 and op.outputs[0] in names
        if not is_output or not bench.offers(op):
            continue
        seen = _seen(bench, op)
        plain = [_float(opened, op, x) for x in seen]
        if any(y is None for y in plain):
            continue
        found = Visible(bench, op, seen, names.index(op.outputs[0]), _nothing)
        expected = found.got(opened.session.reference())
        tails = [t for t in TAILS if _agrees(replace(found, tail=t), expected)]
        is_whole_model = len(opened.view.ops) == 1
        assert tails or not is_whole_model, (
            f"{op.name} ({op.type}) is the whole model, and what it writes is not what "
            "describe(), tensor() and observe() say of it: look at the weight's layout, "
            "channel_axis and attributes"
        )
        if tails:
            yield replace(found, tail=tails[0])


def _agrees(visible: Visible, expected: np.ndarray) -> bool:
    exact = visible.exact()
    if exact.shape != expected.shape:
        return False
    return rms(exact - expected) <= SAME * rms(expected)


def _outputs(visible: Visible, candidate: Candidate) -> list[np.ndarray]:
    """Return one output of the model for each batch."""
    found = outputs(candidate, visible.bench.case.batches)
    return found[visible.place :: len(visible.bench.opened.view.outputs)]


def _seen(bench: Bench, op: Op) -> list[list[np.ndarray]]:
    """Return what an op reads, for each batch, by observing the float model."""
    return [observed(bench, op, batch) for batch in bench.case.batches]


def observed(bench: Bench, op: Op, batch: Batch) -> list[np.ndarray]:
    """Return what an op reads of one batch in the float model, float64."""
    kept: dict[str, np.ndarray] = {}

    def keep(value: str, array: Any) -> None:
        kept[value] = np.array(to_numpy(array), np.float64)

    if op.inputs:
        bench.opened.session.observe([batch], op.inputs, keep)
    return [kept[value] for value in op.inputs]


def _float(opened: Opened, op: Op, x: Arrays) -> np.ndarray | None:
    weight = opened.session.tensor(op.weight.name) if op.weight else None
    numbers = None if weight is None else np.asarray(to_numpy(weight), np.float64)
    return forward(op, x, numbers, _bias(opened, op))


def _bias(opened: Opened, op: Op) -> np.ndarray | None:
    if not op.bias:
        return None
    return np.asarray(to_numpy(opened.session.tensor(op.bias)), np.float64)
