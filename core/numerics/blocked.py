"""Round to nearest at the speed of memory: cache-sized blocks, buffers that are used again, no full-size temporary.

The numbers are those of :func:`~octavo.core.numerics.codec.choose` and :func:`~octavo.core.numerics.codec.encode`, bit for bit; only
the order of the work differs. NumPy runs one block per thread (its loops release the interpreter), torch parallelises
each operation itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

from octavo.core.errors import NonFiniteWeight
from octavo.core.values.scheme import QuantSpec

from .affine import Array, QuantParams, affine_params, integer_range, is_integer

_NUMPY_BLOCK = 2**18
"""Elements of one block: 1 MiB, so that it and its buffers stay in cache; smaller ones cost more calls than they save."""

_TORCH_BLOCK = 2**20
"""Likewise, shared by torch's threads; larger, since each of its operations costs microseconds to start."""

_SHORT = 256
"""Rows shorter than this cost NumPy more between its inner loops than within them."""

_ROUNDER = 1.5 * 2.0**23
"""Added to x, |x| < 2**22, it leaves round(x), ties to even, in the low bits of the sum: float32 has no finer digits there."""


def threads() -> int:
    """Return how many threads array code of our own may use: OMP_NUM_THREADS, or the processors of this process, at most 8."""
    try:
        wanted = int(os.environ.get("OMP_NUM_THREADS", "0"))
    except ValueError:
        wanted = 0
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(wanted or available, 8)


def takes(matrix: Array, spec: QuantSpec) -> bool:
    """Whether :func:`round_blocked` applies: integers up to 8 bits, one scale per channel or per whole group, float32 data."""
    if (
        not (is_numpy_array(matrix) or is_torch_array(matrix))
        or 0 in matrix.shape
        or not is_integer(spec)
        or spec.bits > 8
    ):
        return False
    if spec.scale_dtype not in (None, "float32") or not str(matrix.dtype).endswith("float32"):
        return False
    return spec.granularity == "channel" or (
        spec.group_size is not None and matrix.shape[1] % spec.group_size == 0
    )


def round_blocked(matrix: Array, spec: QuantSpec) -> tuple[Array, QuantParams]:
    """Return (codes, parameters) on the weight's own range.

    Args:
        matrix: float32, shape (rows, features).
        spec: One that :func:`takes` accepts.

    Returns:
        int8 or uint8 codes of the matrix's shape; extra memory is three blocks for each thread, a quarter of a large matrix at most.

    Raises:
        NonFiniteWeight: If the matrix holds NaN or Inf.
    """
    xp = array_namespace(matrix)
    rows, features = matrix.shape
    qmin, qmax = integer_range(spec)
    size = spec.group_size or features
    codes = xp.empty(
        (rows, features), dtype=xp.uint8 if qmin == 0 else xp.int8, device=device(matrix)
    )
    scale = xp.empty((rows, features // size), dtype=xp.float32, device=device(matrix))
    zero_point = (
        None
        if spec.symmetric
        else xp.empty(tuple(scale.shape), dtype=xp.int32, device=device(matrix))
    )
    numpy = is_numpy_array(matrix)
    workers = threads() if numpy else 1
    step = max(1, (_numpy_block(rows * features, workers) if numpy else _TORCH_BLOCK) // features)
    middle = 0 if qmin < 0 else (qmin + qmax + 1) // 2
    extremes = _numpy_extremes if numpy else _extremes

    def work(first: int, last: int) -> None:
        out = xp.empty(
            (min(step, last - first), features // size, size),
            dtype=xp.float32,
            device=device(matrix),
        )
        for i in range(first, last, step):
            end = min(i + step, last)
            block = xp.reshape(matrix[i:end, :], (end - i, features // size, size))
            steps = out[: end - i, ...]
            if zero_point is None:
                scale[i:end, :] = extremes(block, steps, True)[1] / (qmax - middle)
                xp.divide(block, _along(scale[i:end, :], size), out=steps)
                # Middles are even, so ties still go to the even step.
                steps += _ROUNDER + middle
                codes[i:end, :] = xp.reshape(steps.view(xp.int32), (end - i, features))
            else:
                low, high = extremes(block, steps, False)
                params = affine_params(low, high, spec, 0)
                scale[i:end, :], zero_point[i:end, :] = params.scale, params.zero_point
                xp.divide(block, _along(params.scale, size), out=steps)
                xp.round(steps, out=steps)
                steps += _along(xp.astype(params.zero_point, xp.float32), size)
                xp.clip(steps, qmin, qmax, out=steps)
                codes[i:end, :] = xp.reshape(steps, (end - i, features))

    def quietly(first: int, last: int) -> None:
        # Rows longer than NumPy's buffer spare it a copy of the scales that it spreads over them.
        before = np.setbufsize(1024)
        try:
            # Scales of zero are mended below.
            with np.errstate(invalid="ignore", divide="ignore"):
                work(first, last)
        finally:
            np.setbufsize(before)

    _spread_over_threads(quietly if numpy else work, rows, step, workers)
    if not bool(xp.all(xp.isfinite(scale))):
        raise NonFiniteWeight(
            "a weight holds NaN or Inf; repair it, or keep its op in float with a rule"
        )
    if zero_point is None:
        zero_point = xp.full_like(xp.astype(scale, xp.int32), middle)
        scale, codes = _without_zero_scales(scale, codes, size, middle)
    if spec.granularity == "channel":
        scale, zero_point = scale[:, 0], zero_point[:, 0]
    return codes, QuantParams(scale, zero_point, spec, 0)


def _numpy_block(elements: int, workers: int) -> int:
    # A worker holds at most three blocks: all of them together stay below a quarter of a large matrix.
    return min(_NUMPY_BLOCK, max(2**15, elements // (16 * workers)))


def _along(parameter: Array, size: int) -> Array:
    """Return one parameter per group so that it broadcasts over the groups' elements."""
    if is_numpy_array(parameter) and size < _SHORT:
        return np.repeat(parameter.reshape(-1), size).reshape(*parameter.shape, size)
    return parameter[:, :, None]


def _extremes(block: Array, buffer: Array, magnitude: bool) -> tuple[Array, Array]:
    """Return (low, high) of each group; of the magnitudes, only high counts."""
    xp = array_namespace(block)
    if magnitude and block.shape[2] < 1024:
        # Bit patterns of magnitudes are ordered as the numbers are, NaN above all, and integers are compared faster.
        high = xp.max(xp.abs(block, out=buffer).view(xp.int32), axis=2).view(xp.float32)
        return high, high
    low, high = xp.min(block, axis=2), xp.max(block, axis=2)
    return low, xp.maximum(-low, high) if magnitude else high


def _numpy_extremes(
    block: np.ndarray, buffer: np.ndarray, magnitude: bool
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`_extremes` on bit patterns.

    As int32 the largest positive number is the greatest, as uint32 the largest negative one: NaN of either sign above all. Where a
    group has no number of a sign, the other's stands in; its range is widened to zero, or its magnitude taken, in any case.
    """
    size = block.shape[2]
    reduce = _folded_max if size < _SHORT and size % 8 == 0 else partial(np.max, axis=2)
    if magnitude and size < _SHORT:
        high = reduce(np.abs(block, out=buffer).view(np.int32)).view(np.float32)
        return high, high
    low, high = (
        reduce(block.view(np.uint32)).view(np.float32),
        reduce(block.view(np.int32)).view(np.float32),
    )
    return low, np.maximum(np.abs(low), np.abs(high)) if magnitude else high


def _folded_max(bits: np.ndarray) -> np.ndarray:
    """Return the greatest integer of each group, for groups so short that a reduction spends its time between them.

    Each is compared with the one half a group later, all in one long loop (what runs over into the next group is not used). The
    halves are then turned into the last axis, four at a time (moved as one 16-byte number), where the loops are long again.
    """
    size, half = bits.shape[2], bits.shape[2] // 2
    flat = bits.reshape(-1)
    folded = np.empty_like(flat)
    np.maximum(flat[:-half], flat[half:], out=folded[:-half])
    fours = folded.reshape(-1, size).view(np.complex128)[:, : half // 4]
    turned = np.max(np.ascontiguousarray(fours.T).view(bits.dtype), axis=0)
    pairs = np.maximum(turned[0::2], turned[1::2])
    found: np.ndarray = np.maximum(pairs[0::2], pairs[1::2]).reshape(bits.shape[:2])
    return found


def _without_zero_scales(scale: Array, codes: Array, size: int, middle: int) -> tuple[Array, Array]:
    """Give groups of zeros scale 1, as :func:`affine_params` does; their division gave no number."""
    xp = array_namespace(scale)
    bad = scale < float(np.finfo(np.float32).tiny)
    if bool(xp.any(bad)):
        scale = xp.where(bad, xp.ones_like(scale), scale)
        grouped = xp.reshape(codes, (codes.shape[0], -1, size))
        codes = xp.reshape(
            xp.where(bad[:, :, None], xp.full_like(grouped, middle), grouped), tuple(codes.shape)
        )
    return scale, codes


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
        for future in [pool.submit(work, i, min(i + share, rows)) for i in range(0, rows, share)]:
            future.result()
