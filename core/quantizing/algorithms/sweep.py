"""Columns rounded from left to right, each corrected by the errors of those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from array_api_compat import array_namespace

from octavo.core.numerics.affine import (
    Array,
    QuantParams,
    integer_range,
    is_integer,
    narrow,
)
from octavo.core.numerics.codec import decode_values, encode_values
from octavo.core.numerics.layout import contiguous
from octavo.core.values.scheme import QuantSpec

_BLOCK = 128
"""Columns between two large matrix products."""

_STRIP = 32
"""Columns between two small ones.

Within a strip a column takes one product of a vector and a matrix.
"""

ChooseGrid = Callable[[Array, int], QuantParams]
"""(columns of a group, its first column) -> parameters."""


class Sweep:
    """One pass over the columns of a weight.

    Everything is held transposed: a column is then a stretch of memory.

    Args:
        weight: float32, shape (rows, features), columns in the order of rounding.
        spec: Dtype and granularity.
        feedback: Unit upper triangular, shape (features, features): what a column takes of the
            errors of those before it.
        params: The grid; None chooses each group's when it is reached, from the weight as corrected
            so far.
        order: The columns' places in the original weight, which decide their groups; None where
            they are in their own order.
        drift: Strictly upper triangular, shape (features, features): what a column takes of those
            before it as they were when they were rounded (GPTAQ's P); None for nothing.
    """

    def __init__(
        self,
        weight: Array,
        spec: QuantSpec,
        feedback: Array,
        params: QuantParams | None,
        order: Sequence[int] | None = None,
        drift: Array | None = None,
    ) -> None:
        xp = array_namespace(weight)
        features = weight.shape[1]
        self._xp = xp
        self._spec = spec
        self._feedback = feedback
        self._params = params
        self._order = range(features) if order is None else order
        self._size = spec.group_size or features
        self._columns = contiguous(xp.matrix_transpose(weight))
        self._errors = xp.empty_like(self._columns)
        self._drift = drift
        # What errors are counted from: the weight, and what has drifted into it from outside the
        # block.
        self._targets = self._columns
        if drift is not None:
            self._targets = xp.asarray(self._columns, copy=True)
            self._met = xp.empty_like(self._columns)
        self._grids = [] if params is None else _grids_of(params)

    def run(self, grid: ChooseGrid) -> tuple[Array, QuantParams]:
        """Round all columns.

        Args:
            grid: Chooses a group's parameters, where they are not given.

        Returns:
            Codes, shape (rows, features), in the order of rounding; and the parameters.
        """
        xp = self._xp
        features = self._columns.shape[0]
        step = _BLOCK
        if self._params is None:
            # A group is in one block, so that its grid is chosen from columns that are corrected.
            step = self._size * max(1, _BLOCK // self._size)
        blocks = []
        for first in range(0, features, step):
            last = min(first + step, features)
            blocks.append(self._block(first, last, grid))
        codes = xp.concat(blocks, axis=1)
        return codes, self._params or self._chosen()

    def _chosen(self) -> QuantParams:
        xp = self._xp
        scales = [grid.scale for grid in self._grids]
        zero_points = [grid.zero_point for grid in self._grids]
        scale = xp.stack(scales, axis=1)
        zero_point = xp.stack(zero_points, axis=1)
        return QuantParams(scale, zero_point, self._spec, 0)

    def _block(self, first: int, last: int, grid: ChooseGrid) -> Array:
        """Return the codes of the columns from ``first`` up to ``last``, shape (rows, columns)."""
        xp = self._xp
        if first and self._drift is not None:
            self._targets[first:last, :] += self._drifted(0, first, last)
        moved = self._targets[first:last, :]
        if first:
            moved = moved + self._feed_back(0, first, last)
        codes: list[Array] = []
        if self._params is not None:
            codes += self._rounded(moved, first, first, last)
        else:
            for start in range(first, last, self._size):
                stop = min(start + self._size, last)
                corrected = self._as_corrected(moved, first, start, stop)
                self._choose_grid(corrected, start, grid)
                codes += self._rounded(moved, first, start, stop)
        turned = xp.matrix_transpose(xp.stack(codes))
        return contiguous(turned)

    def _choose_grid(self, corrected: Array, start: int, grid: ChooseGrid) -> None:
        """Choose the grid of the group that starts at a column."""
        columns = self._xp.matrix_transpose(corrected)
        params = grid(columns, start)
        scale = params.scale[:, 0]
        zero_point = params.zero_point[:, 0]
        self._grids.append(_ColumnGrid(scale, zero_point, self._spec))

    def _feed_back(self, since: int, first: int, last: int) -> Array:
        """Return what columns ``first`` to ``last`` take of the errors since column ``since``."""
        xp = self._xp
        feedback = xp.matrix_transpose(self._feedback[since:first, first:last])
        errors = self._errors[since:first, :]
        return xp.matmul(feedback, errors)

    def _drifted(self, since: int, first: int, last: int) -> Array:
        """Return what columns ``first`` to ``last`` take of those since column ``since``."""
        assert self._drift is not None
        xp = self._xp
        drift = xp.matrix_transpose(self._drift[since:first, first:last])
        return xp.matmul(drift, self._met[since:first, :])

    def _rounded(self, moved: Array, block: int, start: int, stop: int) -> list[Array]:
        """Return the codes of the columns from ``start`` up to ``stop``, and keep their errors.

        Args:
            moved: The block's columns, corrected by the errors before the block.
            block: Its first column.
            start: The first column to round.
            stop: The one after the last.
        """
        codes = []
        for first in range(start, stop, _STRIP):
            last = min(first + _STRIP, stop)
            strip = moved[first - block : last - block, :]
            targets = self._targets[first:last, :]
            if first > block:
                strip = strip + self._feed_back(block, first, last)
                if self._drift is not None:
                    drifted = self._drifted(block, first, last)
                    strip, targets = strip + drifted, targets + drifted
            for k in range(first, last):
                column = strip[k - first, :]
                target = targets[k - first, :]
                if k > first:
                    errors = self._errors[first:k, :]
                    feedback = self._feedback[first:k, k]
                    column = column + self._xp.matmul(feedback, errors)
                if self._drift is not None:
                    column, target = self._after_drift(column, target, first, k)
                grid = self._grid_of(k)
                marks, numbers = grid.round(column)
                self._errors[k, :] = target - numbers
                codes.append((marks, grid))
        return [grid.codes(marks) for marks, grid in codes]

    def _after_drift(
        self, column: Array, target: Array, first: int, k: int
    ) -> tuple[Array, Array]:
        """Return a column and its target with what the columns since ``first`` add; keep it."""
        assert self._drift is not None
        if k > first:
            drifted = self._xp.matmul(self._drift[first:k, k], self._met[first:k, :])
            column, target = column + drifted, target + drifted
        self._met[k, :] = column
        return column, target

    def _grid_of(self, column: int) -> _ColumnGrid:
        group = self._order[column] // self._size
        # One grid may serve all columns.
        return self._grids[min(group, len(self._grids) - 1)]

    def _as_corrected(self, moved: Array, block: int, start: int, stop: int) -> Array:
        """Return a group's columns as GPTQ has them when it reaches the group.

        Each is moved by what the ones before it leave.
        """
        xp = self._xp
        own = self._targets[start:stop, :]
        shift = moved[start - block : stop - block, :] - own
        if start > block:
            shift = shift + self._feed_back(block, start, stop)
            if self._drift is not None:
                own = own + self._drifted(block, start, stop)
        within = xp.matrix_transpose(self._feedback[start:stop, start:stop])
        return own + xp.linalg.solve(within, shift)


class _ColumnGrid:
    """One column's grid.

    For integers everything that does not depend on the column is worked out once.
    """

    def __init__(self, scale: Array, zero_point: Array, spec: QuantSpec) -> None:
        xp = array_namespace(scale)
        self.scale = scale
        self.zero_point = zero_point
        self._spec = spec
        self._xp = xp
        self._bounds = None
        if is_integer(spec):
            qmin, qmax = integer_range(spec)
            low = xp.astype(qmin - zero_point, xp.float32)
            high = xp.astype(qmax - zero_point, xp.float32)
            self._bounds = (low, high)

    def round(self, column: Array) -> tuple[Array, Array]:
        """Return (marks, numbers); marks become codes by :meth:`codes`."""
        if self._bounds is None:
            grid = (self.scale, self.zero_point, self._spec)
            marks = encode_values(column, *grid)
            return marks, decode_values(marks, *grid)
        xp = self._xp
        low, high = self._bounds
        whole = xp.round(column / self.scale)
        steps = xp.minimum(xp.maximum(whole, low), high)
        return steps, steps * self.scale

    def codes(self, marks: Array) -> Array:
        """Return the codes of a rounded column."""
        if self._bounds is None:
            return marks
        xp = self._xp
        whole = xp.astype(marks, xp.int32)
        return narrow(whole + self.zero_point, self._spec)


def _grids_of(params: QuantParams) -> list[_ColumnGrid]:
    """Return a grid for each group of columns; one where all columns share it."""
    scales = _by_group(params.scale)
    zero_points = _by_group(params.zero_point)
    grids = []
    for scale, zero_point in zip(scales, zero_points, strict=True):
        grids.append(_ColumnGrid(scale, zero_point, params.spec))
    return grids


def _by_group(parameter: Array) -> list[Array]:
    if parameter.ndim < 2:
        return [parameter]
    xp = array_namespace(parameter)
    turned = contiguous(xp.matrix_transpose(parameter))
    return [turned[i, :] for i in range(turned.shape[0])]
