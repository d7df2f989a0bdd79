"""Round to nearest at the speed of memory.

Cache-sized blocks, buffers that are used again, no full-size temporary. The numbers are those of
:func:`~octavo.core.numerics.codec.choose_params` and :func:`~octavo.core.numerics.codec.encode`,
bit for bit; only the order of the work differs. NumPy runs one block per thread (its loops release
the interpreter), torch parallelises each operation itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

from octavo.core.errors import NonFiniteWeight
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
from .extremes import SHORT, extremes, numpy_extremes

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


def threads() -> int:
    """Return how many threads array code of our own may use.

    OMP_NUM_THREADS, or the processors of this process; at most 8.
    """
    try:
        wanted = int(os.environ.get("OMP_NUM_THREADS", "0"))
    except ValueError:
        wanted = 0
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return min(wanted or available, 8)


def takes(matrix: Array, spec: QuantSpec) -> bool:
    """Whether :func:`round_blocked` applies.

    It takes integers up to 8 bits, one scale per channel or per whole group, float32 data.
    """
    is_known = is_numpy_array(matrix) or is_torch_array(matrix)
    if not is_known or 0 in matrix.shape:
        return False
    if not is_integer(spec) or spec.bits > 8:
        return False
    is_float32 = str(matrix.dtype).endswith("float32")
    if not is_float32 or spec.scale_dtype not in (None, "float32"):
        return False
    if spec.granularity == "channel":
        return True
    return spec.group_size is not None and matrix.shape[1] % spec.group_size == 0


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


def round_blocked(matrix: Array, spec: QuantSpec) -> tuple[Array, QuantParams]:
    """Return (codes, parameters) on the weight's own range.

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
    if is_numpy_array(matrix):
        _round_on_threads(work)
    else:
        rows, features = matrix.shape
        step = max(1, _TORCH_BLOCK // features)
        _round_rows(work, 0, rows, step)
    if not bool(xp.all(xp.isfinite(work.scale))):
        raise NonFiniteWeight(
            "a weight holds NaN or Inf; repair it, or keep its op in float with a rule"
        )
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
    return codes, QuantParams(scale, zero_point, spec, 0)


def _round_on_threads(work: _Work) -> None:
    rows, features = work.matrix.shape
    workers = threads()
    block = _numpy_block(rows * features, workers)
    step = max(1, block // features)

    def round_share(first: int, last: int) -> None:
        _quietly(work, first, last, step)

    _spread_over_threads(round_share, rows, step, workers)


def _numpy_block(elements: int, workers: int) -> int:
    # A worker holds at most three blocks: all of them together stay below a quarter of a large
    # matrix.
    share = elements // (16 * workers)
    return min(_NUMPY_BLOCK, max(2**15, share))


def _quietly(work: _Work, first: int, last: int, step: int) -> None:
    # Rows longer than NumPy's buffer spare it a copy of the scales that it spreads over them.
    before = np.setbufsize(1024)
    try:
        # Scales of zero are mended afterwards.
        with np.errstate(invalid="ignore", divide="ignore"):
            _round_rows(work, first, last, step)
    finally:
        np.setbufsize(before)


def _round_rows(work: _Work, first: int, last: int, step: int) -> None:
    """Round some rows, ``step`` of them at a time, in one buffer."""
    buffer = work.buffer(min(step, last - first))
    round_block = _round_symmetric if work.zero_point is None else _round_asymmetric
    for start in range(first, last, step):
        end = min(start + step, last)
        round_block(work, start, end, buffer[: end - start, ...])


def _round_symmetric(work: _Work, start: int, end: int, steps: Array) -> None:
    xp = array_namespace(work.matrix)
    block = work.grouped(start, end)
    _, largest = _extremes_of(block, steps, magnitude=True)
    _, qmax = work.code_range
    scale = work.scale[start:end, :]
    scale[...] = largest / (qmax - work.middle)
    xp.divide(block, _along(scale, work.size), out=steps)
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
    xp.round(steps, out=steps)
    zero_point = xp.astype(params.zero_point, xp.float32)
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


def _spread_over_threads(
    work: Callable[[int, int], None], rows: int, step: int, count: int
) -> None:
    blocks = -(-rows // step)
    count = min(count, blocks)
    if count <= 1:
        work(0, rows)
        return
    share = -(-blocks // count) * step
    with ThreadPoolExecutor(count) as pool:
        pending = []
        for start in range(0, rows, share):
            end = min(start + share, rows)
            pending.append(pool.submit(work, start, end))
        for future in pending:
            future.result()
