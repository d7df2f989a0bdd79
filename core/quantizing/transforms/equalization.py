"""Cross-layer equalization: give a channel the same weight range on both of its sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.transform import Observed
from octavo.core.numerics.affine import Array
from octavo.core.numerics.rows import rows_of
from octavo.core.values.graph import ModelView, Op

from .base import Link, Rescaling, by_output_channel, largest_of, links, usable


class EqualizationConfig(PartConfig):
    """Settings of cross-layer equalization.

    Attributes:
        iterations: Most passes over all pairs; it ends when no factor moves by more than a
            thousandth.
    """

    kind: Literal["equalization"] = "equalization"
    iterations: int = Field(20, ge=1)


class Equalization(Rescaling):
    """f_i = sqrt(r1_i / r2_i), r1 the producer's range of channel i and r2 the consumers'.

    Both then meet at their geometric mean. Paper: Nagel et al. 2019, "Data-Free Quantization
    Through Weight Equalization and Bias Correction", eq. 11, over chains of layers until nothing
    moves. Pairs of a convolution or a linear op and those that read it; a producer's output is
    divided by f and its readers' weights multiplied. Norms are left alone: they have no weights to
    round.

    Needs the weights alone. Cost: one pass over them; the iterations run on the ranges.
    """

    config: EqualizationConfig

    def factors(
        self,
        view: ModelView,
        tensor: Callable[[str], Array],
        statistics: Observed,
        recipe_ops: Mapping[str, Op],
    ) -> Mapping[str, Array]:
        """Return group name -> factors."""
        ranges = _Ranges(view)
        for link in links(view, tensor, statistics, recipe_ops):
            producer = view.by_name.get(link.group.producer)
            if producer is not None and rows_of(producer) is not None:
                ranges.add(link, producer)
        if not ranges.pairs:
            return {}
        for _ in range(self.config.iterations):
            moved = ranges.equalize_all()
            if moved < 1e-3:
                break
        return ranges.factors


class _Ranges:
    """The ranges of all pairs under the factors so far.

    Attributes:
        pairs: Groups, each with the op that writes its value.
        factors: Group name -> factors.
    """

    def __init__(self, view: ModelView) -> None:
        self.pairs: list[tuple[Link, Op]] = []
        self.factors: dict[str, Array] = {}
        self._view = view
        self._magnitudes: dict[str, Array] = {}

    def add(self, link: Link, producer: Op) -> None:
        """Take in a pair."""
        self.pairs.append((link, producer))
        for op in (producer, *link.members):
            if op.name not in self._magnitudes:
                self._magnitudes[op.name] = _magnitudes(op, link.tensor)

    def equalize_all(self) -> float:
        """Pass over all pairs once; returns by how much a factor moved at most."""
        return max(self.equalize(link, producer) for link, producer in self.pairs)

    def equalize(self, link: Link, producer: Op) -> float:
        """Let both ranges of each channel of a pair meet; returns by how much a factor moved."""
        before = self._input_factors(producer)
        outer = producer_range(producer, self._magnitudes[producer.name], before)
        inner = largest_of([self._reader_range(op) for op in link.members])
        xp = array_namespace(outer)
        ones = xp.ones_like(outer)
        # A channel that nothing reads has no ratio; one that is never written has ratio 0, which
        # is not usable either.
        is_read = inner > 0
        ratio = xp.where(is_read, outer, ones) / xp.where(is_read, inner, ones)
        factors = usable(ratio**0.5)
        moved = factors / self.factors.get(link.group.name, ones)
        self.factors[link.group.name] = factors
        return float(xp.max(xp.abs(moved - 1)))

    def _reader_range(self, op: Op) -> Array:
        return reader_range(op, self._magnitudes[op.name], self._output_factors(op))

    def _input_factors(self, op: Op) -> Array | None:
        for group in self._view.groups:
            if group.name in self.factors and op.name in group.members:
                return self.factors[group.name]
        return None

    def _output_factors(self, op: Op) -> Array | None:
        for group in self._view.groups:
            if group.name in self.factors and op.name == group.producer:
                return self.factors[group.name]
        return None


def _magnitudes(op: Op, tensor: Callable[[str], Array]) -> Array:
    """Return the largest |w| over the kernel: (outputs, inputs of the op's own group)."""
    matrix = by_output_channel(op, tensor)
    xp = array_namespace(matrix)
    rows = rows_of(op)
    assert op.weight is not None
    is_convolution = rows is not None and rows.kernel
    inputs = op.weight.shape[1] if is_convolution else matrix.shape[1]
    outputs = matrix.shape[0]
    by_input = xp.reshape(matrix, (outputs, inputs, -1))
    return xp.max(xp.abs(by_input), axis=2)


def producer_range(op: Op, magnitudes: Array, inputs: Array | None) -> Array:
    """Return the range of each output channel, of shape (outputs,).

    Under the factors of the op's inputs, and none of its outputs.
    """
    xp = array_namespace(magnitudes)
    return xp.max(_with_inputs(op, magnitudes, inputs), axis=1)


def reader_range(op: Op, magnitudes: Array, outputs: Array | None) -> Array:
    """Return the range of each input channel, of shape (inputs,).

    Under the factors of the op's outputs, and none of its inputs.
    """
    xp = array_namespace(magnitudes)
    scaled = magnitudes if outputs is None else magnitudes / outputs[:, None]
    by_group = xp.reshape(scaled, (_groups(op), -1, magnitudes.shape[1]))
    return xp.reshape(xp.max(by_group, axis=1), (-1,))


def _with_inputs(op: Op, magnitudes: Array, inputs: Array | None) -> Array:
    if inputs is None:
        return magnitudes
    xp = array_namespace(magnitudes)
    groups = _groups(op)
    by_group = xp.reshape(magnitudes, (groups, -1, magnitudes.shape[1]))
    scaled = by_group * xp.reshape(inputs, (groups, 1, -1))
    return xp.reshape(scaled, tuple(magnitudes.shape))


def _groups(op: Op) -> int:
    rows = rows_of(op)
    return rows.groups if rows is not None else 1
