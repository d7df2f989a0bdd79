"""Round to nearest at the speed of memory: cache-sized blocks, buffers that are used again, no full-size temporary.

The numbers are those of :func:`~octavo.core.numerics.codec.choose` and :func:`~octavo.core.numerics.codec.encode`, bit for bit; only
the order of the work differs. NumPy runs one block per thread (its loops release the interpreter), torch parallelises
each operation itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

from ..errors import NonFiniteWeight
from ..scheme import QuantSpec
from .affine import Array, QuantParams, affine_params, integer_range, is_integer

_NUMPY_BLOCK = 2**17
"""Elements of one block: 512 KiB, so that it and its buffer stay in a core's own cache."""

_TORCH_BLOCK = 2**20
"""Likewise, shared by torch's threads; larger, since each of its operations costs microseconds to start."""


def threads() -> int:
    """Return how many threads array code of our own may use: OMP_NUM_THREADS, or the processors of this process, at most 8."""
    try:
        wanted = int(os.environ.get("OMP_NUM_THREADS", "0"))
    except ValueError:
        wanted = 0
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted or available, 8)


def takes(matrix: Array, spec: QuantSpec) -> bool:
    """Whether :func:`round_blocked` applies: integers up to 8 bits, one scale per channel or per whole group, float32 data."""
    if not (is_numpy_array(matrix) or is_torch_array(matrix)) or 0 in matrix.shape or not is_integer(spec) or spec.bits > 8:
        return False
    if spec.scale_dtype not in (None, "float32") or not str(matrix.dtype).endswith("float32"):
        return False
    return spec.granularity == "channel" or (spec.group_size is not None and matrix.shape[1] % spec.group_size == 0)


def round_blocked(matrix: Array, spec: QuantSpec) -> tuple[Array, QuantParams]:
    """Return (codes, parameters) on the weight's own range.

    Args:
        matrix: float32, shape (rows, features).
        spec: One that :func:`takes` accepts.

    Returns:
        int8 or uint8 codes of the matrix's shape; extra memory is one block for each thread.

    Raises:
        NonFiniteWeight: If the matrix holds NaN or Inf.
    """
    xp = array_namespace(matrix)
    rows, features = matrix.shape
    qmin, qmax = integer_range(spec)
    size = spec.group_size or features
    codes = xp.empty((rows, features), dtype=xp.uint8 if qmin == 0 else xp.int8, device=device(matrix))
    scale = xp.empty((rows, features // size), dtype=xp.float32, device=device(matrix))
    zero_point = None if spec.symmetric else xp.empty(tuple(scale.shape), dtype=xp.int32, device=device(matrix))
    numpy = is_numpy_array(matrix)
    step = max(1, (_NUMPY_BLOCK if numpy else _TORCH_BLOCK) // features)
    middle = 0 if qmin < 0 else (qmin + qmax + 1) // 2
    turning = numpy and size % 4 == 0 and size < features
    extremes = _numpy_extremes if turning else _extremes

    def work(first: int, last: int) -> None:
        shape = (min(step, last - first), features // size, size)
        buffers = tuple(xp.empty(shape, dtype=xp.float32, device=device(matrix)) for _ in range(2 if turning else 1))
        for i in range(first, last, step):
            end = min(i + step, last)
            block = xp.reshape(matrix[i:end, :], (end - i, features // size, size))
            outs = tuple(b[: end - i, ...] for b in buffers)
            out = outs[0]
            with np.errstate(invalid="ignore", divide="ignore"):
                if zero_point is None:
                    scale[i:end, :] = extremes(block, outs, True)[1] / (qmax - middle)
                    _whole_steps(xp, block, scale[i:end, :], out)
                    if middle:
                        out += middle
                else:
                    low, high = extremes(block, outs, False)
                    params = affine_params(low, high, spec, 0)
                    scale[i:end, :], zero_point[i:end, :] = params.scale, params.zero_point
                    _whole_steps(xp, block, params.scale, out)
                    out += xp.astype(params.zero_point, xp.float32)[:, :, None]
                    xp.clip(out, qmin, qmax, out=out)
                codes[i:end, :] = xp.reshape(out, (end - i, features))

    _spread_over_threads(work, rows, step, threads() if numpy else 1)
    if not bool(xp.all(xp.isfinite(scale))):
        raise NonFiniteWeight("a weight holds NaN or Inf; repair it, or keep its op in float with a rule")
    if zero_point is None:
        zero_point = xp.full_like(xp.astype(scale, xp.int32), middle)
        scale, codes = _without_zero_scales(scale, codes, size, middle)
    if spec.granularity == "channel":
        scale, zero_point = scale[:, 0], zero_point[:, 0]
    return codes, QuantParams(scale, zero_point, spec, 0)


def _whole_steps(xp: Any, block: Array, scale: Array, out: Array) -> None:
    spread = scale[:, :, None]
    if is_numpy_array(block) and block.shape[2] < 256:
        # Short inner loops cost NumPy more than a repeated scale.
        spread = np.repeat(scale.reshape(-1), block.shape[2]).reshape(block.shape)
    xp.divide(block, spread, out=out)
    xp.round(out, out=out)


def _extremes(block: Array, out: tuple[Array, ...], magnitude: bool) -> tuple[Array, Array]:
    """Return (low, high) of each group; of the magnitudes, only high counts."""
    xp = array_namespace(block)
    if magnitude and block.shape[2] < 1024:
        xp.abs(block, out=out[0])
        high = xp.max(out[0], axis=2)
        return high, high
    low, high = xp.min(block, axis=2), xp.max(block, axis=2)
    return low, xp.maximum(-low, high) if magnitude else high


def _numpy_extremes(block: np.ndarray, out: tuple[np.ndarray, ...], magnitude: bool) -> tuple[np.ndarray, np.ndarray]:
    """:func:`_extremes` for short groups, where NumPy's reduction along the last axis spends its time between groups.

    Groups are turned into the last axis, four floats at a time (moved as one 16-byte number), so that the reduction runs over
    long rows; two strided steps finish the four.
    """
    groups, size = block.shape[0] * block.shape[1], block.shape[2]
    if magnitude:
        block = np.abs(block, out=out[0])
    turned = out[1].reshape(-1).view(np.complex128).reshape(size // 4, groups)
    np.copyto(turned, block.reshape(groups, size).view(np.complex128).T)
    rows = turned.view(np.float32)
    high = _four(np.max(rows, axis=0), np.maximum)
    low = high if magnitude else _four(np.min(rows, axis=0), np.minimum)
    return low.reshape(out[0].shape[:2]), high.reshape(out[0].shape[:2])


def _four(x: np.ndarray, join: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    half = join(x[0::2], x[1::2])
    return join(half[0::2], half[1::2])


def _without_zero_scales(scale: Array, codes: Array, size: int, middle: int) -> tuple[Array, Array]:
    """Give groups of zeros scale 1, as :func:`affine_params` does; their division gave no number."""
    xp = array_namespace(scale)
    bad = scale < float(np.finfo(np.float32).tiny)
    if bool(xp.any(bad)):
        scale = xp.where(bad, xp.ones_like(scale), scale)
        grouped = xp.reshape(codes, (codes.shape[0], -1, size))
        codes = xp.reshape(xp.where(bad[:, :, None], xp.full_like(grouped, middle), grouped), tuple(codes.shape))
    return scale, codes


def _spread_over_threads(work: Callable[[int, int], None], rows: int, step: int, count: int) -> None:
    blocks = -(-rows // step)
    count = min(count, blocks)
    if count <= 1:
        work(0, rows)
        return
    share = -(-blocks // count) * step
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work, i, min(i + share, rows)) for i in range(0, rows, share)]:
            future.result()
