"""Round to nearest at the speed of memory.

Cache-sized blocks, buffers that are used again, no full-size temporary. The numbers are those of
:func:`~octavo.core.numerics.codec.choose_params` and :func:`~octavo.core.numerics.codec.encode`,
bit for bit; only the order of the work differs. NumPy runs one block per thread (its loops release
the interpreter), torch parallelises each operation itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

from octavo.core.errors import NonFiniteWeight
from octavo.core.system.threads import spread_over_threads, threads
from octavo.core.values.scheme import QuantSpec

from .affine import (
    SMALLEST_SCALE,
    Array,
    QuantParams,
    affine_params,
    integer_range,
    is_integer,
    middle_code,
)
from .codec import choose_params
from .extremes import SHORT, extremes, numpy_extremes
from .scales import SecondLevel

_NUMPY_BLOCK = 2**18
"""Elements of one block: 1 MiB, so that it and its buffers stay in cache.

Smaller ones cost more calls than they save.
"""

_TORCH_BLOCK = 2**20
"""Likewise, shared by torch's threads.

Larger, since each of its operations costs microseconds to start.
"""

_ROUNDER = 1.5 * 2.0**23
"""Added to x, |x| < 2**22, it leaves round(x), ties to even, in the low bits of the sum.

float32 has no finer digits there.
"""


def takes(matrix: Array, spec: QuantSpec) -> bool:
    """Whether :func:`round_blocked` applies.

    It takes integers up to 8 bits, one scale per channel or per whole group, float32 data; scales
    in any format.
    """
    is_known = is_numpy_array(matrix) or is_torch_array(matrix)
    if not is_known or 0 in matrix.shape:
        return False
    if not is_integer(spec) or spec.bits > 8:
        return False
    is_float32 = str(matrix.dtype).endswith("float32")
    if not is_float32:
        return False
    if spec.granularity == "channel":
        return True
    return spec.group_size is not None and matrix.shape[1] % spec.group_size == 0


Rounded = tuple[Array, QuantParams, SecondLevel | None]
"""Codes, parameters, and the second level of the scales where they have one."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A matrix, and where its codes and parameters go.

    Attributes:
        matrix: float32, shape (rows, features).
        spec: How it is quantized.
        code_range: (qmin, qmax) of the spec.
        middle: The zero point where the spec is symmetric.
        size: Elements that share a scale.
        codes: int8 or uint8, the matrix's shape.
        scale: float32, shape (rows, groups).
        zero_point: int32, likewise; None for symmetric specs.
    """

    matrix: Array
    spec: QuantSpec
    code_range: tuple[int, int]
    middle: int
    size: int
    codes: Array
    scale: Array
    zero_point: Array | None

    @classmethod
    def over(cls, matrix: Array, spec: QuantSpec) -> _Work:
        """Return the work on a matrix, with room for what it gives."""
        xp = array_namespace(matrix)
        rows, features = matrix.shape
        size = spec.group_size or features
        groups = (rows, features // size)
        where = device(matrix)
        code_range = integer_range(spec)
        is_unsigned = code_range[0] == 0
        code_type = xp.uint8 if is_unsigned else xp.int8
        codes = xp.empty((rows, features), dtype=code_type, device=where)
        scale = xp.empty(groups, dtype=xp.float32, device=where)
        zero_point = None
        if not spec.symmetric:
            zero_point = xp.empty(groups, dtype=xp.int32, device=where)
        middle = middle_code(spec)
        return cls(matrix, spec, code_range, middle, size, codes, scale, zero_point)

    def grouped(self, first: int, last: int) -> Array:
        """Return rows of the matrix, shape (rows, groups, size)."""
        xp = array_namespace(self.matrix)
        shape = (last - first, self.scale.shape[1], self.size)
        return xp.reshape(self.matrix[first:last, :], shape)

    def buffer(self, rows: int) -> Array:
        """Return an empty float32 array for so many rows, shape (rows, groups, size)."""
        xp = array_namespace(self.matrix)
        shape = (rows, self.scale.shape[1], self.size)
        return xp.empty(shape, dtype=xp.float32, device=device(self.matrix))


ByBlock = Callable[[_Work, int, int, Array], None]
"""What is done with the rows from a first to before a last one, in a buffer for them."""


def round_blocked(matrix: Array, spec: QuantSpec) -> Rounded:
    """Return (codes, parameters, second level of the scales) on the weight's own range.

    Scales that are float32 are chosen and divided by block by block. Others are rounded together,
    so the matrix is read once for them and once for the codes.

    Args:
        matrix: float32, shape (rows, features).
        spec: One that :func:`takes` accepts.

    Returns:
        int8 or uint8 codes of the matrix's shape; extra memory is three blocks for each thread, a
        quarter of a large matrix at most.

    Raises:
        NonFiniteWeight: If the matrix holds NaN or Inf.
    """
    xp = array_namespace(matrix)
    work = _Work.over(matrix, spec)
    if spec.scale_dtype is not None:
        return _round_on_stored(work)
    by_block = _round_symmetric if work.zero_point is None else _round_asymmetric
    _each_block(work, by_block)
    _check_finite(work.scale)
    codes = work.codes
    scale = work.scale
    zero_point = work.zero_point
    if zero_point is None:
        whole = xp.astype(scale, xp.int32)
        zero_point = xp.full_like(whole, work.middle)
        scale, codes = _without_zero_scales(scale, codes, work.size, work.middle)
    if spec.granularity == "channel":
        scale = scale[:, 0]
        zero_point = zero_point[:, 0]
    return codes, QuantParams(scale, zero_point, spec, 0), None


def _check_finite(found: Array) -> None:
    xp = array_namespace(found)
    if not bool(xp.all(xp.isfinite(found))):
        raise NonFiniteWeight(
            "a weight holds NaN or Inf; repair it, or keep its op in float with a rule"
        )


def _round_on_stored(work: _Work) -> Rounded:
    """Round to scales that are known only when the whole weight was read."""
    xp = array_namespace(work.matrix)
    spec = work.spec
    low, high = xp.empty_like(work.scale), xp.empty_like(work.scale)

    def find(work: _Work, start: int, end: int, buffer: Array) -> None:
        block = work.grouped(start, end)
        below, above = _extremes_of(block, buffer, magnitude=spec.symmetric)
        # Of a symmetric range only the largest magnitude counts.
        low[start:end, :] = -above if spec.symmetric else below
        high[start:end, :] = above

    _each_block(work, find)
    _check_finite(low)
    _check_finite(high)
    by_row = (slice(None), 0) if spec.granularity == "channel" else ...
    params, second = choose_params(low[by_row], high[by_row], spec, 0)
    shape = tuple(work.scale.shape)
    scale = xp.reshape(params.scale, shape)
    zero_point = xp.astype(xp.reshape(params.zero_point, shape), xp.float32)

    def round_block(work: _Work, start: int, end: int, steps: Array) -> None:
        block = work.grouped(start, end)
        xp.divide(block, _along(scale[start:end, :], work.size), out=steps)
        if spec.symmetric:
            _codes_about_middle(work, start, end, steps)
        else:
            _codes_of_steps(work, start, end, steps, zero_point[start:end, :])

    _each_block(work, round_block)
    return work.codes, params, second


def _each_block(work: _Work, by_block: ByBlock) -> None:
    """Work through all rows: with NumPy on threads, with torch, which has its own, here."""
    if is_numpy_array(work.matrix):
        _round_on_threads(work, by_block)
        return
    rows, features = work.matrix.shape
    _round_rows(work, by_block, 0, rows, max(1, _TORCH_BLOCK // features))


def _round_on_threads(work: _Work, by_block: ByBlock) -> None:
    rows, features = work.matrix.shape
    workers = threads()
    block = _numpy_block(rows * features, workers)
    step = max(1, block // features)

    def round_share(first: int, last: int) -> None:
        _quietly(work, by_block, first, last, step)

    spread_over_threads(round_share, rows, step, workers)


def _numpy_block(elements: int, workers: int) -> int:
    # A worker holds at most three blocks: all of them together stay below a quarter of a large
    # matrix.
    share = elements // (16 * workers)
    return min(_NUMPY_BLOCK, max(2**15, share))


def _quietly(work: _Work, by_block: ByBlock, first: int, last: int, step: int) -> None:
    # Rows longer than NumPy's buffer spare it a copy of the scales that it spreads over them.
    before = np.setbufsize(1024)
    try:
        # Scales of zero are mended afterwards.
        with np.errstate(invalid="ignore", divide="ignore"):
            _round_rows(work, by_block, first, last, step)
    finally:
        np.setbufsize(before)


def _round_rows(
    work: _Work, by_block: ByBlock, first: int, last: int, step: int
) -> None:
    """Go through some rows, ``step`` of them at a time, with one buffer."""
    buffer = work.buffer(min(step, last - first))
    for start in range(first, last, step):
        end = min(start + step, last)
        by_block(work, start, end, buffer[: end - start, ...])


def _round_symmetric(work: _Work, start: int, end: int, steps: Array) -> None:
    xp = array_namespace(work.matrix)
    block = work.grouped(start, end)
    _, largest = _extremes_of(block, steps, magnitude=True)
    _, qmax = work.code_range
    scale = work.scale[start:end, :]
    scale[...] = largest / (qmax - work.middle)
    xp.divide(block, _along(scale, work.size), out=steps)
    _codes_of_whole_range(work, start, end, steps)


def _codes_about_middle(work: _Work, start: int, end: int, steps: Array) -> None:
    """Make codes of numbers in units of their scales, which may lie beyond the range: a scale that
    was rounded may be smaller than the range needs."""
    xp = array_namespace(steps)
    qmin, qmax = work.code_range
    xp.clip(steps, qmin - work.middle, qmax - work.middle, out=steps)
    _codes_of_whole_range(work, start, end, steps)


def _codes_of_whole_range(work: _Work, start: int, end: int, steps: Array) -> None:
    xp = array_namespace(steps)
    # Middles are even, so ties still go to the even step.
    steps += _ROUNDER + work.middle
    # Stored in fewer bits, a sum keeps its low ones: the code.
    work.codes[start:end, :] = xp.reshape(steps.view(xp.int32), (end - start, -1))


def _round_asymmetric(work: _Work, start: int, end: int, steps: Array) -> None:
    xp = array_namespace(work.matrix)
    assert work.zero_point is not None
    block = work.grouped(start, end)
    low, high = _extremes_of(block, steps, magnitude=False)
    params = affine_params(low, high, work.spec, 0)
    work.scale[start:end, :] = params.scale
    work.zero_point[start:end, :] = params.zero_point
    xp.divide(block, _along(params.scale, work.size), out=steps)
    zero_point = xp.astype(params.zero_point, xp.float32)
    _codes_of_steps(work, start, end, steps, zero_point)


def _codes_of_steps(
    work: _Work, start: int, end: int, steps: Array, zero_point: Array
) -> None:
    """Make codes of numbers in units of their scales, which are overwritten."""
    xp = array_namespace(steps)
    xp.round(steps, out=steps)
    steps += _along(zero_point, work.size)
    xp.clip(steps, *work.code_range, out=steps)
    work.codes[start:end, :] = xp.reshape(steps, (end - start, -1))


def _extremes_of(
    block: Array, buffer: Array, *, magnitude: bool
) -> tuple[Array, Array]:
    of_namespace: Any = numpy_extremes if is_numpy_array(block) else extremes
    found: tuple[Array, Array] = of_namespace(block, buffer, magnitude=magnitude)
    return found


def _along(parameter: Array, size: int) -> Array:
    """Return one parameter per group so that it broadcasts over the groups' elements."""
    if is_numpy_array(parameter) and size < SHORT:
        spread = np.repeat(parameter.reshape(-1), size)
        return spread.reshape(*parameter.shape, size)
    return parameter[:, :, None]


def _without_zero_scales(
    scale: Array, codes: Array, size: int, middle: int
) -> tuple[Array, Array]:
    """Give groups of zeros scale 1, as :func:`affine_params` does.

    Their division gave no number.
    """
    xp = array_namespace(scale)
    bad = scale < SMALLEST_SCALE
    if not bool(xp.any(bad)):
        return scale, codes
    grouped = xp.reshape(codes, (codes.shape[0], -1, size))
    middles = xp.full_like(grouped, middle)
    mended = xp.where(bad[:, :, None], middles, grouped)
    scale = xp.where(bad, xp.ones_like(scale), scale)
    return scale, xp.reshape(mended, tuple(codes.shape))
