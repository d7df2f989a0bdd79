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

from .base import Rescaling, by_output_channel, links, usable


class EqualizationConfig(PartConfig):
    """Settings of cross-layer equalization.

    Attributes:
        iterations: Most passes over all pairs; it ends when no factor moves by more than a thousandth.
    """

    kind: Literal["equalization"] = "equalization"
    iterations: int = Field(20, ge=1)


class Equalization(Rescaling):
    """f_i = sqrt(r1_i / r2_i): the producer's range r1 and the consumers' range r2 of channel i meet at their geometric mean.

    Paper: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", eq. 11, over chains of
    layers until nothing moves. Pairs of a convolution or a linear op and those that read it; a producer's output is
    divided by f and its readers' weights multiplied. Norms are left alone: they have no weights to round.

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
        pairs = []
        magnitudes: dict[str, Array] = {}
        for link in links(view, tensor, statistics, recipe_ops):
            producer = view.by_name.get(link.group.producer)
            if producer is not None and rows_of(producer) is not None:
                pairs.append((link, producer))
                for op in (producer, *link.members):
                    if op.name not in magnitudes:
                        magnitudes[op.name] = _magnitudes(op, tensor)
        found: dict[str, Array] = {}
        for _ in range(self.config.iterations if pairs else 0):
            moved = 0.0
            for link, producer in pairs:
                now = found.get(link.group.name)
                outer = producer_range(
                    producer, magnitudes[producer.name], _input_factors(producer, view, found), now
                )
                inner: Array = None
                for op in link.members:
                    mine = reader_range(
                        op, magnitudes[op.name], now, _output_factors(op, view, found)
                    )
                    inner = mine if inner is None else array_namespace(mine).maximum(inner, mine)
                xp = array_namespace(outer)
                step = usable((outer / inner) ** 0.5)
                step = xp.where((outer > 0) & (inner > 0), step, xp.ones_like(step))
                found[link.group.name] = usable(step if now is None else now * step)
                moved = max(moved, float(xp.max(xp.abs(step - 1))))
            if moved < 1e-3:
                break
        return found


def _magnitudes(op: Op, tensor: Callable[[str], Array]) -> Array:
    """Return the largest |w| over the kernel: (outputs, inputs of the op's own group)."""
    matrix = by_output_channel(op, tensor)
    xp = array_namespace(matrix)
    rows = rows_of(op)
    assert op.weight is not None
    inputs = op.weight.shape[1] if rows is not None and rows.kernel else matrix.shape[1]
    return xp.max(xp.abs(xp.reshape(matrix, (matrix.shape[0], inputs, -1))), axis=2)


def producer_range(op: Op, magnitudes: Array, inputs: Array | None, outputs: Array | None) -> Array:
    """Return the range of each output channel of a weight under the factors so far: shape (outputs,)."""
    xp = array_namespace(magnitudes)
    largest = xp.max(_with_inputs(op, magnitudes, inputs), axis=1)
    return largest if outputs is None else largest / outputs


def reader_range(op: Op, magnitudes: Array, inputs: Array | None, outputs: Array | None) -> Array:
    """Return the range of each input channel of a weight under the factors so far: shape (inputs,)."""
    xp = array_namespace(magnitudes)
    scaled = _with_inputs(op, magnitudes, inputs)
    if outputs is not None:
        scaled = scaled / outputs[:, None]
    groups = _groups(op)
    return xp.reshape(xp.max(xp.reshape(scaled, (groups, -1, magnitudes.shape[1])), axis=1), (-1,))


def _with_inputs(op: Op, magnitudes: Array, inputs: Array | None) -> Array:
    if inputs is None:
        return magnitudes
    xp = array_namespace(magnitudes)
    groups = _groups(op)
    parts = xp.reshape(magnitudes, (groups, -1, magnitudes.shape[1])) * xp.reshape(
        inputs, (groups, 1, -1)
    )
    return xp.reshape(parts, tuple(magnitudes.shape))


def _groups(op: Op) -> int:
    rows = rows_of(op)
    return rows.groups if rows is not None else 1


def _input_factors(op: Op, view: ModelView, found: Mapping[str, Array]) -> Array | None:
    return next(
        (found[g.name] for g in view.groups if g.name in found and op.name in g.members), None
    )


def _output_factors(op: Op, view: ModelView, found: Mapping[str, Array]) -> Array | None:
    return next(
        (found[g.name] for g in view.groups if g.name in found and op.name == g.producer), None
    )
