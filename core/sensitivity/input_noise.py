"""What rounding an op's input really adds to its rows, from one pass over a few batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from octavo.core.calibration.features import FeatureSquare, FeatureSum
from octavo.core.contract.adapter import Batch, OpParameters, Session
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.channels import Change, ChannelMap
from octavo.core.numerics.codec import choose_params, project
from octavo.core.numerics.ranges import ranges, token_params
from octavo.core.numerics.rows import rows_of
from octavo.core.values.graph import Op
from octavo.core.values.scheme import QuantSpec

ChangeOf = Callable[[str, str], Change]
"""(op, value) -> what transforms do to the value before the op meets it."""


@dataclass(frozen=True)
class InputNoise:
    """Rounding errors of an op's input, as its weight multiplies them.

    Attributes:
        square: Mean square of each feature's error, (groups, features).
        power: Sum over features of the input's own variances, (groups,).
        mean: The input's mean, (groups, features).
    """

    square: np.ndarray
    power: np.ndarray
    mean: np.ndarray

    @property
    def direction(self) -> np.ndarray:
        """The mean of the inputs at length 1, (groups, features) float32; 0 where it is 0."""
        lengths = np.linalg.norm(self.mean, axis=1, keepdims=True)
        found: np.ndarray = self.mean / np.where(lengths > 0, lengths, 1.0)
        return found.astype(np.float32)

    def per_channel(self, weight: np.ndarray) -> np.ndarray:
        """Return the energy that the errors add to each output channel, over the input's power.

        Args:
            weight: (channels, features), float32.
        """
        groups, features = self.square.shape
        squares = np.square(weight.reshape(groups, -1, features))
        energy = (squares * self.square[:, None, :]).sum(axis=2)
        whole = np.where(self.power > 0, self.power, np.inf)
        found: np.ndarray = (energy / whole[:, None]).reshape(-1)
        return found.astype(np.float32)


@dataclass
class _Watch:
    """One value as an op meets it, under one way to round it.

    Attributes:
        maps: What transforms do to the value first.
        axis: Of its channels.
        round: Returns the rounded value.
        errors: Sees the rows of errors.
        inputs: Sees the rows of the value.
        sums: Likewise.
    """

    maps: tuple[ChannelMap, ...]
    axis: int
    round: Callable[[Array], Array]
    errors: FeatureSquare
    inputs: FeatureSquare
    sums: FeatureSum

    def update(self, x: Array) -> None:
        for one in self.maps:
            x = one.apply(x, self.axis)
        seen = to_numpy(x).astype(np.float32, copy=False)
        if not seen.size:
            return
        self.errors.update(self.round(seen) - seen)
        self.inputs.update(seen)
        self.sums.update(seen)

    def found(self) -> InputNoise:
        count = max(1, self.errors.count)
        square = np.asarray(self.errors.value) / count
        mean = np.asarray(self.sums.value) / count
        variance = np.asarray(self.inputs.value) / count - np.square(mean)
        power = np.maximum(variance, 0.0).sum(axis=1)
        return InputNoise(square, power, mean)


@dataclass
class InputNoises:
    """Watches the inputs of ops, each rounded as its parameters say.

    Attributes:
        watches: Label -> (value, watch).
    """

    watches: dict[str, tuple[str, _Watch]] = field(default_factory=dict)

    def expect(self, label: str, op: Op, given: OpParameters, change: ChangeOf) -> None:
        """Watch an op's first input; nothing where the scheme leaves it in float.

        Args:
            label: The result's.
            op: Has a weight that multiplies rows.
            given: Its parameters.
            change: What transforms do to values.
        """
        rounded = _rounding(given)
        rows = rows_of(op)
        if rounded is None or rows is None:
            return
        value = op.inputs[0]
        maps, axis = change(op.name, value)
        squares = FeatureSquare(rows), FeatureSquare(rows)
        watch = _Watch(maps, axis, rounded, *squares, FeatureSum(rows))
        self.watches[label] = (value, watch)

    def observe(self, session: Session, batches: Sequence[Batch]) -> int:
        """Run the original model once over the batches; return how many were run."""
        if not self.watches:
            return 0
        by_value: dict[str, list[_Watch]] = {}
        for value, watch in self.watches.values():
            by_value.setdefault(value, []).append(watch)

        def update(value: str, x: Array) -> None:
            for watch in by_value[value]:
                watch.update(x)

        return session.observe(batches, tuple(by_value), update)

    def found(self) -> Mapping[str, InputNoise]:
        """Return what was seen, by label."""
        seen = {}
        for label, (_, watch) in self.watches.items():
            if watch.errors.count:
                seen[label] = watch.found()
        return seen


def _rounding(given: OpParameters) -> Callable[[Array], Array] | None:
    """Return what rounds an op's first input as its parameters say; None where nothing does."""
    spec = given.scheme.input
    if spec is None:
        return None
    if given.scheme.mode == "static":
        params = given.inputs[0] if given.inputs else None
        return None if params is None else _by(params)
    return lambda x: _at_run_time(x, spec)


def _by(params: QuantParams) -> Callable[[Array], Array]:
    scale = to_numpy(params.scale)
    held = QuantParams(scale, to_numpy(params.zero_point), params.spec, params.axis)
    return lambda x: project(x, held)


def _at_run_time(x: np.ndarray, spec: QuantSpec) -> Array:
    """Return a value rounded as a dynamic kernel does."""
    if spec.granularity == "token":
        return project(x, token_params(x, spec))
    if spec.granularity == "tensor":
        params, _ = choose_params(x.min(), x.max(), spec, None)
        return project(x, params)
    rows = x.reshape(-1, x.shape[-1])
    params, _ = choose_params(*ranges(rows, spec), spec, 0)
    return project(rows, params).reshape(x.shape)
