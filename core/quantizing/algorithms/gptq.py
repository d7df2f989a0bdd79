"""GPTQ: round column by column and let later columns make up for the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from array_api_compat import array_namespace

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array, QuantParams, integer_range, is_integer, narrow
from octavo.core.numerics.codec import decode_values, encode, encode_values
from octavo.core.numerics.layout import contiguous
from octavo.core.numerics.scales import shares_scales
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import is_grouped

from .search import own_grid, power_cost, searched_grid

_BLOCK = 128
"""Columns between two large matrix products."""

_STRIP = 32
"""Columns between two small ones; within a strip a column takes one product of a vector and a matrix."""


class GptqConfig(WeightConfig):
    """Settings of GPTQ.

    Attributes:
        damping: Share of the mean diagonal that is added to the Gram matrix's diagonal.
        act_order: Round the columns with the largest inputs first; groups then keep the scales of the original weight.
        static_groups: Choose every group's scale from the original weight instead of the weight as already corrected.
        clip: ``mse`` searches a smaller range for each scale, weighted by the Gram matrix's diagonal; ``none`` takes the whole range.
    """

    kind: Literal["gptq"] = "gptq"
    damping: float = 0.01
    act_order: bool = False
    static_groups: bool = False
    clip: Literal["none", "mse"] = "none"


class Gptq(WeightAlgorithm):
    """Minimises tr((W - W_q) G (W - W_q)^T) greedily, one column at a time.

    Paper: Frantar et al. 2023, "GPTQ", algorithm 1, in the equivalent form of Chee et al. 2023, "QuIP", theorem 6 (LDLQ):
    with G = (U + I) D (U + I)^T, U strictly upper, column j is rounded to Q(w_j + (W - W_q)_{<j} U_{<j,j}). That takes
    one Cholesky factorisation and no inverse.

    Needs the Gram matrix. Cost: features^3 / 3 multiply-adds for the factor, rows x features^2 / 2 for the corrections.
    """

    config: GptqConfig

    def quantize(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> QuantizedTensor:
        """Quantize to any dtype, per tensor, channel or group."""
        if spec.granularity.startswith("block:"):
            raise SchemeError(
                f"gptq rounds column by column and cannot share a scale over rows ({spec}); use group or channel granularity"
            )
        xp = array_namespace(matrix)
        gram = context.require_gram("gptq")
        weight = xp.astype(matrix, xp.float32)
        diagonal = xp.linalg.diagonal(gram)
        params, extra = None, None
        if 0 in matrix.shape or self._fixed(spec):
            params, extra = self._grid(weight, spec, context, diagonal)
        if 0 in matrix.shape:
            assert params is not None
            return QuantizedTensor(encode(weight, params), params, extra)
        order = [*range(weight.shape[1])]
        if self.config.act_order:
            ranks = xp.argsort(-diagonal, stable=True)
            weight, gram = (
                xp.take(weight, ranks, axis=1),
                xp.take(xp.take(gram, ranks, axis=0), ranks, axis=1),
            )
            order = [int(i) for i in ranks]

        def grid(part: Array, first: int) -> QuantParams:
            return self._grid(part, spec, context, diagonal[first : first + part.shape[1]])[0]

        codes, found = sweep(
            weight, spec, feedback_matrix(gram, self.config.damping), order, params, grid
        )
        if self.config.act_order:
            codes = xp.take(codes, xp.argsort(ranks, stable=True), axis=1)
        return QuantizedTensor(codes, found, extra)

    def _fixed(self, spec: QuantSpec) -> bool:
        """Whether scales are chosen before the first column: always for those that are rounded over the whole tensor."""
        return (
            self.config.static_groups
            or self.config.act_order
            or not is_grouped(spec)
            or shares_scales(spec)
        )

    def _grid(
        self, part: Array, spec: QuantSpec, context: WeightContext, importance: Array
    ) -> tuple[QuantParams, dict[str, Any] | None]:
        if self.config.clip == "none" or context.params is not None:
            return own_grid(part, spec, context)
        return searched_grid(part, spec, context, power_cost(spec, 2.0, importance))


def sweep(
    weight: Array,
    spec: QuantSpec,
    feedback: Array,
    order: list[int],
    params: QuantParams | None,
    grid: Callable[[Array, int], QuantParams],
) -> tuple[Array, QuantParams]:
    """Round the columns from left to right, each corrected by the errors of those before it.

    Args:
        weight: float32, shape (rows, features), columns in the order of rounding.
        spec: Dtype and granularity.
        feedback: :func:`feedback_matrix`, shape (features, features).
        order: The columns' places in the original weight, which decide their groups.
        params: The grid; None chooses each group's when it is reached, from the weight as corrected so far.
        grid: (columns of the group, first column) -> parameters, for that case.

    Returns:
        Codes, shape (rows, features), in the order of rounding; and the parameters.
    """
    xp = array_namespace(weight)
    features = weight.shape[1]
    size = spec.group_size or features
    block = size * max(1, _BLOCK // size) if params is None else _BLOCK
    wt = contiguous(xp.matrix_transpose(weight))  # a column is then a stretch of memory
    errors = xp.empty_like(wt)
    grids = (
        []
        if params is None
        else [
            _Column(s, z, spec)
            for s, z in zip(_by_group(params.scale), _by_group(params.zero_point), strict=True)
        ]
    )
    blocks = []
    for i in range(0, features, block):
        end = min(i + block, features)
        now = (
            wt[i:end, :] + xp.matmul(xp.matrix_transpose(feedback[:i, i:end]), errors[:i, :])
            if i
            else wt[i:end, :]
        )
        chosen = []
        for g in range(i, end, size) if params is None else (i,):
            stop = min(g + size, end) if params is None else end
            if params is None:
                part = grid(
                    xp.matrix_transpose(_as_corrected(now, wt, errors, feedback, i, g, stop)), g
                )
                grids.append(_Column(part.scale[:, 0], part.zero_point[:, 0], spec))
            for j in range(g, stop, _STRIP):
                last = min(j + _STRIP, stop)
                strip = now[j - i : last - i, :]
                if j > i:
                    strip = strip + xp.matmul(
                        xp.matrix_transpose(feedback[i:j, j:last]), errors[i:j, :]
                    )
                for k in range(j, last):
                    column = strip[k - j, :]
                    if k > j:
                        column = column + xp.matmul(feedback[j:k, k], errors[j:k, :])
                    column_grid = grids[min(order[k] // size, len(grids) - 1)]
                    marks, numbers = column_grid.round(column)
                    errors[k, :] = wt[k, :] - numbers
                    chosen.append((marks, column_grid))
        blocks.append(
            contiguous(
                xp.matrix_transpose(
                    xp.stack([column_grid.codes(marks) for marks, column_grid in chosen])
                )
            )
        )
    found = params or QuantParams(
        xp.stack([g.scale for g in grids], axis=1),
        xp.stack([g.zero_point for g in grids], axis=1),
        spec,
        0,
    )
    return xp.concat(blocks, axis=1), found


class _Column:
    """One column's grid. For integers everything that does not depend on the column is worked out once."""

    def __init__(self, scale: Array, zero_point: Array, spec: QuantSpec) -> None:
        self.scale, self.zero_point, self.spec = scale, zero_point, spec
        self._xp = xp = array_namespace(scale)
        self._bounds = None
        if is_integer(spec):
            qmin, qmax = integer_range(spec)
            self._bounds = (
                xp.astype(qmin - zero_point, xp.float32),
                xp.astype(qmax - zero_point, xp.float32),
            )

    def round(self, column: Array) -> tuple[Array, Array]:
        """Return (marks, numbers); marks become codes by :meth:`codes`."""
        if self._bounds is None:
            marks = encode_values(column, self.scale, self.zero_point, self.spec)
            return marks, decode_values(marks, self.scale, self.zero_point, self.spec)
        low, high = self._bounds
        steps = self._xp.minimum(self._xp.maximum(self._xp.round(column / self.scale), low), high)
        return steps, steps * self.scale

    def codes(self, marks: Array) -> Array:
        """Return the codes of a rounded column."""
        return (
            marks
            if self._bounds is None
            else narrow(self._xp.astype(marks, self._xp.int32) + self.zero_point, self.spec)
        )


def _as_corrected(
    now: Array, wt: Array, errors: Array, feedback: Array, i: int, g: int, stop: int
) -> Array:
    """Return a group's columns as GPTQ has them when it reaches the group: each moved by what the ones before it leave."""
    xp = array_namespace(wt)
    moved = now[g - i : stop - i, :] - wt[g:stop, :]
    if g > i:
        moved = moved + xp.matmul(xp.matrix_transpose(feedback[i:g, g:stop]), errors[i:g, :])
    return wt[g:stop, :] + xp.linalg.solve(xp.matrix_transpose(feedback[g:stop, g:stop]), moved)


def _by_group(parameter: Array) -> list[Array]:
    if parameter.ndim < 2:
        return [parameter]
    xp = array_namespace(parameter)
    turned = contiguous(xp.matrix_transpose(parameter))
    return [turned[i, :] for i in range(turned.shape[0])]


def feedback_matrix(gram: Array, damping: float) -> Array:
    """Return U + I of G + damping * mean(diag G) * I = (U + I) D (U + I)^T, unit upper triangular, float32.

    Raises:
        SchemeError: If the matrix is not positive definite even with ten times the damping.
    """
    xp = array_namespace(gram)
    diagonal = xp.linalg.diagonal(gram)
    mean = float(xp.mean(diagonal))
    # Inputs that never fired carry no information: a unit diagonal leaves their columns alone.
    dead = xp.astype(diagonal == 0, xp.float32) * max(mean, 1.0)
    # Beside the Gram matrix two of its size are alive at a time: for wide layers they are the peak of a whole run's memory.
    for strength in (damping, 10 * damping):
        flat = xp.reshape(xp.asarray(gram, copy=True), (-1,))
        flat[:: gram.shape[0] + 1] = diagonal + (strength * mean + dead)
        # The Cholesky factor of the matrix turned round is, turned back, the upper factor.
        turned = xp.reshape(xp.flip(flat), gram.shape)
        del flat
        try:
            factor = xp.linalg.cholesky(turned)
        except Exception as error:
            failure = error
            continue
        finally:
            del turned
        upper = xp.flip(factor, axis=(0, 1))
        del factor
        return upper / xp.linalg.diagonal(upper)[None, :]
    raise SchemeError(
        f"the Gram matrix is not positive definite with damping {10 * damping}: {failure}; give more calibration data or more damping"
    )
