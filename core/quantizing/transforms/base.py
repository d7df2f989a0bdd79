"""What the built-in rescalings share: a group, its members' weights, what calibration saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace

from octavo.core.calibration.calibrators.minmax import MinMax
from octavo.core.calibration.features import FeatureObserver, FeatureSum, Gram
from octavo.core.contract.calibrator import Probe
from octavo.core.contract.transform import Observed, Rescaling
from octavo.core.numerics.affine import Array
from octavo.core.numerics.layout import to_matrix
from octavo.core.numerics.rows import rows_of
from octavo.core.quantizing.input_features import feature_probes
from octavo.core.values.graph import Group, ModelView, Op
from octavo.core.values.scheme import MINMAX

__all__ = ["Link", "Rescaling", "links"]


@dataclass(frozen=True)
class Link:
    """A rescale group ready for choosing factors.

    Attributes:
        group: The group.
        view: The model.
        members: Its consumers that may be quantized.
        tensor: ``Session.tensor``.
        statistics: What calibration saw.
    """

    group: Group
    view: ModelView
    members: tuple[Op, ...]
    tensor: Callable[[str], Array]
    statistics: Observed

    def weights(self) -> list[Array]:
        """Return each member's weight, float32: (channels of the value, what multiplies each)."""
        return [by_input_channel(op, self.tensor) for op in self.members]

    def weight_absmax(self) -> Array:
        """Return the largest absolute weight that multiplies each channel, over all members.

        Returns:
            float32, shape (channels,).
        """
        largest = []
        for matrix in self.weights():
            xp = array_namespace(matrix)
            largest.append(xp.max(xp.abs(matrix), axis=1))
        return largest_of(largest)

    def input_absmax(self) -> Array:
        """Return the largest absolute value of each channel that was seen in calibration.

        Returns:
            float32, shape (channels,).
        """
        largest = []
        for op in self.members:
            features = self.observed("channel_range", op).value
            xp = array_namespace(features)
            largest.append(xp.max(_by_channel(features, self.group.channels), axis=1))
        return largest_of(largest)

    def input_range(self) -> tuple[Array, Array]:
        """Return the (smallest, largest) value of each channel that was seen in calibration.

        Returns:
            float32, shape (channels,) each.
        """
        rows = rows_of(self.members[0])
        assert rows is not None
        probe = Probe(self.group.value, MINMAX, rows.channel_axis)
        observer = self.statistics.observer(probe)
        assert isinstance(observer, MinMax)
        return observer.low, observer.high

    def observed(self, need: str, op: Op) -> FeatureObserver:
        """Return what was observed of a member's input.

        Members read one value, each under a kernel of its own.

        Raises:
            DataError: If it was not observed.
        """
        probe = next(feature_probes(op, (need,)))
        observer = self.statistics.observer(probe)
        assert isinstance(observer, FeatureObserver)
        return observer

    def grams(self, shift: Array | None = None) -> list[Array]:
        """Return the Gram matrix of each member's input, (groups, features, features), float32.

        Args:
            shift: What inputs are centred on first, shape (channels,). Where centring cancels what
                float32 holds, the plain matrix.
        """
        found = []
        for op in self.members:
            gram = self.observed("gram", op)
            assert isinstance(gram, Gram)
            sums = None if shift is None else self.observed("channel_mean", op)
            centred = (
                gram.centred(sums, shift) if isinstance(sums, FeatureSum) else None
            )
            found.append((centred or gram).value)
        return found


def links(
    view: ModelView,
    tensor: Callable[[str], Array],
    statistics: Observed,
    recipe_ops: Mapping[str, Op],
    carries: str = "scale",
) -> Iterator[Link]:
    """Yield the rescale groups that may be given factors.

    They take ``carries`` and hold an op that may be quantized and whose inputs can be observed.
    """
    for group in view.groups:
        if group.kind != "rescale" or carries not in group.takes:
            continue
        free = (recipe_ops[name] for name in group.members if name in recipe_ops)
        members = tuple(op for op in free if rows_of(op) is not None)
        if members:
            yield Link(group, view, members, tensor, statistics)


def largest_of(arrays: Sequence[Array]) -> Array:
    """Return the largest of each element over arrays of one shape; there must be one at least."""
    found, *others = arrays
    for array in others:
        found = array_namespace(array).maximum(found, array)
    return found


def by_input_channel(op: Op, tensor: Callable[[str], Array]) -> Array:
    """Return a weight as (input channels, the rest), float32."""
    assert op.weight is not None
    array = tensor(op.weight.name)
    xp = array_namespace(array)
    rows = rows_of(op)
    matrix = xp.astype(to_matrix(array, op.weight.channel_axis), xp.float32)
    if rows is None or not rows.kernel:
        return xp.matrix_transpose(matrix)
    # (outputs, inputs / groups * kernel) -> (groups, inputs / groups, everything else)
    inputs = op.weight.shape[1]
    outputs = matrix.shape[0] // rows.groups
    parts = xp.reshape(matrix, (rows.groups, outputs, inputs, -1))
    parts = xp.permute_dims(parts, (0, 2, 1, 3))
    return xp.reshape(parts, (rows.groups * inputs, -1))


def by_output_channel(op: Op, tensor: Callable[[str], Array]) -> Array:
    """Return a weight as (output channels, the rest), float32."""
    assert op.weight is not None
    array = tensor(op.weight.name)
    xp = array_namespace(array)
    return xp.astype(to_matrix(array, op.weight.channel_axis), xp.float32)


def usable(factors: Array) -> Array:
    """Return factors with 1 where they are zero or not finite, and within 1e-4 to 1e4."""
    xp = array_namespace(factors)
    good = xp.isfinite(factors) & (factors > 0)
    # Further apart, float32 itself suffers.
    return xp.clip(xp.where(good, factors, xp.ones_like(factors)), 1e-4, 1e4)


def _by_channel(features: Array, channels: int) -> Array:
    """Fold (groups, features) to (channels, places under the kernel)."""
    xp = array_namespace(features)
    return xp.reshape(features, (channels, -1))


def channel_energy(link: Link) -> Array:
    """Return E[x^2] of each channel, float32, shape (channels,): the mean of what members see.

    Each member sees the value under a kernel of its own: a stride leaves places out, padding adds
    zeros.
    """
    found = []
    for op in link.members:
        gram = link.observed("gram", op)
        xp = array_namespace(gram.value)
        energy = xp.linalg.diagonal(gram.value) / max(1, gram.count)
        found.append(xp.mean(_by_channel(energy, link.group.channels), axis=1))
    return sum(found[1:], found[0]) / len(found)
