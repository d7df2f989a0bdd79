"""Scale estimation: scales of groups by alternating least squares on what the groups put out."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.codec import encode, project
from octavo.core.numerics.scales import rounded_scale
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import block_shape, is_grouped

from .learned import output_error, unshrunk
from .least_squares import can_fit, chosen, in_steps, rounded_steps, with_fitted
from .search import own_grid, with_zeros

_TURNS = 2
"""How often each group's scale is fitted to what the others leave; a third changes little."""

_STEP = 0.05
"""By which the second stage shrinks the whole range's scale each time."""


class ScaleEstimationConfig(WeightConfig):
    """Settings of scale estimation.

    Attributes:
        initial_steps: Turns of estimating from the codes of the whole range.
        scale_steps: Shrunk scales that are tried: 1, 0.95, 0.9, ... of the whole range's; each is
            estimated once more from the codes that it gives.
        keep_size: Let each row's scales grow in the end by what its outputs have shrunk
            (:func:`.learned.unshrunk`): least squares leans towards zero.
    """

    kind: Literal["scale_estimation"] = "scale_estimation"
    initial_steps: int = Field(5, ge=0)
    scale_steps: int = Field(10, ge=0, le=20)
    keep_size: bool = True


class ScaleEstimation(WeightAlgorithm):
    """Estimates each scale from its codes, rounds again, and keeps what errs less at the output.

    Source: NNCF, ScaleEstimation (nncf/quantization/algorithms/weight_compression/
    scale_estimation.py): first from the codes of the whole range, then from those of shrunk scales;
    a group keeps a scale where its own part of the output, d G_g d^T, errs less; zero points stay.
    NNCF estimates with the mean of w / u, weighted by the inputs' magnitudes, and measures on
    samples of the inputs; here both are on the group's Gram matrix G_g, so that the estimate is the
    least-squares one, w G_g u^T / u G_g u^T. As there, what comes out is taken only where the whole
    output (here: of each row) is nearer than with the scales at the start.

    After another algorithm (``gptq``) its codes stay, and the scales of a row's groups take turns:
    each becomes the least-squares one for what the others leave of the whole output
    (:func:`refitted`).

    Needs the Gram matrix. Cost: about 30 products rows x features x group; after another algorithm
    three of rows x features x features.
    """

    config: ScaleEstimationConfig

    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize to any dtype and granularity."""
        xp = array_namespace(matrix)
        gram = context.require_gram("scale_estimation")
        weight = xp.astype(matrix, xp.float32)
        if context.start is not None:
            is_fixed = context.params is not None or 0 in matrix.shape
            return context.start if is_fixed else refitted(context.start, weight, gram)
        params, extra = own_grid(weight, spec, context)
        is_free = can_fit(spec) and context.params is None
        if is_free and 0 not in matrix.shape:
            estimated = self._estimated(weight, params, GroupOutputs(gram, spec))
            nearer = nearer_in_whole(weight, params, estimated, gram)
            params, extra = rounded_scale(nearer)
        found = QuantizedTensor(encode(weight, params), params, extra)
        return unshrunk(found, weight, context) if self.config.keep_size else found

    def _estimated(
        self, weight: Array, start: QuantParams, outputs: GroupOutputs
    ) -> QuantParams:
        best = start
        best_error = outputs.error(project(weight, start) - weight)
        at: QuantParams = start
        for step in range(self.config.initial_steps + self.config.scale_steps):
            later = step - self.config.initial_steps
            if later < 0:
                at = best
            else:
                at = _shrunk(start, 1.0 - _STEP * later)
            tried = outputs.fitted(weight, at)
            error = outputs.error(project(weight, tried) - weight)
            better = error < best_error
            best = chosen(better, tried, best)
            xp = array_namespace(error)
            best_error = xp.where(better, error, best_error)
        return best


class GroupOutputs:
    """What the elements of each scale put out by themselves, on a Gram matrix.

    Args:
        gram: G, shape (features, features).
        spec: Says which elements share a scale.
    """

    def __init__(self, gram: Array, spec: QuantSpec) -> None:
        xp = array_namespace(gram)
        self._spec = spec
        features = gram.shape[0]
        block = block_shape(spec) if is_grouped(spec) else (1, features)
        self._tall: int = block[0]
        self._wide: int = block[1]
        missing = -features % self._wide
        padded = with_zeros(with_zeros(gram, 0, missing), 1, missing)
        count = (features + missing) // self._wide
        parts = xp.reshape(padded, (count, self._wide, count, self._wide))
        own = [parts[i, :, i, :] for i in range(count)]
        self._grams = xp.stack(own)  # (groups, wide, wide)

    def product(self, one: Array, other: Array) -> Array:
        """Return a G_g b^T of each scale's own elements a and b, in the shape of the scales."""
        xp = array_namespace(one)
        left = self._by_group(one)
        right = self._by_group(other)
        rows = xp.sum(xp.matmul(left, self._grams) * right, axis=2)
        by_row = xp.matrix_transpose(rows)  # (rows, groups)
        spec = self._spec
        if spec.granularity == "tensor":
            return xp.sum(by_row)
        if not is_grouped(spec):
            return by_row[:, 0]
        padded = with_zeros(by_row, 0, -by_row.shape[0] % self._tall)
        stacked = xp.reshape(padded, (-1, self._tall, padded.shape[1]))
        return xp.sum(stacked, axis=1)

    def error(self, difference: Array) -> Array:
        """Return d G_g d^T."""
        return self.product(difference, difference)

    def fitted(self, weight: Array, at: QuantParams) -> QuantParams:
        """Return the scales of least squares for the codes that ``at`` gives, as stored."""
        steps = rounded_steps(weight, at)
        products = self.product(weight, steps)
        energy = self.product(steps, steps)
        rounded, _ = rounded_scale(with_fitted(at, products, energy))
        return rounded

    def _by_group(self, matrix: Array) -> Array:
        """Return a (rows, features) matrix as (groups, rows, wide)."""
        xp = array_namespace(matrix)
        padded = with_zeros(matrix, 1, -matrix.shape[1] % self._wide)
        grouped = xp.reshape(padded, (matrix.shape[0], -1, self._wide))
        return xp.permute_dims(grouped, (1, 0, 2))


def refitted(start: QuantizedTensor, weight: Array, gram: Array) -> QuantizedTensor:
    """Return codes with the scales of least tr(D G D^T), D = W_q - W; group after group, twice.

    With u the codes as steps, a group's scale moves by -(u_g . (D G)_g) / (u_g G_g u_g^T). Scales
    that rows share, or that cannot move alone, stay.

    Args:
        start: Codes and parameters of a (rows, features) matrix.
        weight: W, float32.
        gram: G, shape (features, features).
    """
    params = start.params
    spec = params.spec
    rows_are_free = spec.granularity == "channel" or spec.group_size is not None
    if not (rows_are_free and can_fit(spec)):
        return start
    xp = array_namespace(weight)
    steps = in_steps(start.dequantize(), params)
    is_flat = params.scale.ndim == 1
    scales = xp.asarray(params.scale, copy=True)
    if is_flat:
        scales = scales[:, None]
    wide = spec.group_size or weight.shape[1]
    leaning = xp.matmul(start.dequantize() - weight, gram)
    for turn in range(_TURNS * scales.shape[1]):
        group = turn % scales.shape[1]
        columns = slice(group * wide, (group + 1) * wide)
        own = steps[:, columns]
        energy = xp.sum(xp.matmul(own, gram[columns, columns]) * own, axis=1)
        slope = xp.sum(own * leaning[:, columns], axis=1)
        before = scales[:, group]
        one = xp.ones_like(energy)
        wanted = before - slope / xp.where(energy > 0, energy, one)
        is_usable = (energy > 0) & (wanted > 0)
        after = xp.where(is_usable, wanted, before)
        moved = (after - before)[:, None] * own
        leaning = leaning + xp.matmul(moved, gram[columns, :])
        scales[:, group] = after
    fitted = replace(params, scale=scales[:, 0] if is_flat else scales)
    rounded, extra = rounded_scale(fitted)
    return QuantizedTensor(start.codes, rounded, extra)


def nearer_in_whole(
    weight: Array, start: QuantParams, found: QuantParams, gram: Array
) -> QuantParams:
    """Return the found scales where the whole output is nearer with them, else the first ones.

    Rows are compared one by one; where a scale serves several rows, all together.
    """
    xp = array_namespace(weight)
    before, after = (
        output_error(project(weight, params) - weight, gram)[0]
        for params in (start, found)
    )
    spec = start.spec
    rows_are_free = spec.granularity == "channel" or spec.group_size is not None
    if not rows_are_free:
        before, after = xp.sum(before), xp.sum(after)
    better = after < before
    if spec.group_size is not None:
        better = better[:, None]
    return chosen(better, found, start)


def _shrunk(params: QuantParams, share: float) -> QuantParams:
    shrunk = replace(params, scale=params.scale * share)
    rounded, _ = rounded_scale(shrunk)
    return rounded
