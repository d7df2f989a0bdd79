"""What a quantized tensor takes in memory, from its spec and shape alone: codes, scales and zero
points.

The one place that knows: the tuning space believes these sizes before anything is quantized, and a
quantized tensor states them afterwards.
"""

from __future__ import annotations

from math import prod
from typing import Final

from octavo.core.errors import SchemeError

from .scheme import RTN, OpScheme, PartChoice, QuantSpec

DOUBLE_BLOCK = 256
"""Scales that share one second-level scale in double quantization."""

_HALVES = ("float16", "bfloat16")
_SCALE_BYTES = {"float16": 2, "bfloat16": 2, "uint8": 1, "fp8_e4m3fn": 1, "e8m0": 1}
_FLOAT32_BYTES = 4
_FLOAT_BYTES = {"float16": 2, "bfloat16": 2, "float64": 8}
_FACTOR_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}

LOW_RANK = "low_rank"
"""The algorithm that adds a product of two thin matrices to a quantized weight."""
REPAIR_RANK = 16
REPAIR_DTYPE: Final = "float16"


def float_width(dtype: str) -> int:
    """Return the bytes of a float number by its dtype's name; 4 where it is none that is known."""
    return _FLOAT_BYTES.get(dtype, _FLOAT32_BYTES)


def block_shape(spec: QuantSpec) -> tuple[int, int]:
    """Return (rows, columns) of ``block:RxC``; (1, N) of ``group:N``."""
    if spec.group_size:
        return 1, spec.group_size
    rows, _, columns = spec.granularity.removeprefix("block:").partition("x")
    return int(rows), int(columns)


def is_grouped(spec: QuantSpec) -> bool:
    """True for ``group:N`` and ``block:RxC``."""
    return spec.granularity.startswith(("group:", "block:"))


def scale_shape(rows: int, features: int, spec: QuantSpec) -> tuple[int, ...]:
    """Return the shape of a (rows, features) matrix's scales. The last group or block may be short.

    Raises:
        SchemeError: For ``token`` granularity, which no weight has.
    """
    if spec.granularity == "tensor":
        return ()
    if spec.granularity == "channel":
        return (rows,)
    if is_grouped(spec):
        tall, wide = block_shape(spec)
        return (-(-rows // tall), -(-features // wide))
    raise SchemeError(
        f"granularity {spec.granularity!r} has no scales for a weight; "
        "use tensor, channel, group:N or block:RxC"
    )


SCALES_OF_GROUPS = "uint8"
"""What backends first offer as scales of integers in groups: codes over a second level.

In groups of 32 they take 0.26 bits a weight, where float16 takes 0.5 and float32 1; with the zero
points of 4 bits float16 would take 0.63. On a small Llama (42 layers, groups of 32, round to
nearest) the divergence from float, times 1000, with scales in float32, float16 and uint8 was 18.20,
18.17 and 18.08 at 2 bits, 3.37, 3.36 and 3.38 at 3, 0.71, 0.72 and 0.70 at 4: nothing is lost.
"""


def stored_bytes(
    spec: QuantSpec, shape: tuple[int, ...], channel_axis: int | None = 0
) -> int:
    """Return the bytes of a tensor when its codes are packed at the spec's bit width.

    Args:
        spec: How it is quantized.
        shape: The tensor's own shape.
        channel_axis: Axis of its output channels; None where all elements share one scale or each
            token has its own.

    Returns:
        Codes, scales in their own format, the second level of two-level scales, and zero points in
        the codes' format.
    """
    elements = prod(shape)
    if spec.dtype in _HALVES:
        return 2 * elements
    scales = _scale_count(spec, shape, channel_axis)
    codes = _packed(elements, spec.bits)
    return codes + _scale_bytes(spec, scales) + _zero_point_bytes(spec, scales)


def scheme_bytes(
    scheme: OpScheme, shape: tuple[int, ...], channel_axis: int | None = 0
) -> int:
    """Return the bytes of a weight under a scheme: :func:`stored_bytes`, and those of its repairs.

    Args:
        scheme: With a weight spec.
        shape: The weight's own shape.
        channel_axis: Axis of its output channels; None counts as the first.
    """
    assert scheme.weight is not None
    rows = shape[channel_axis or 0] if shape else 1
    features = prod(shape) // rows if rows else 0
    repairs = sum(repair_bytes(part, rows, features) for part in repairs_of(scheme))
    return stored_bytes(scheme.weight, shape, channel_axis) + repairs


def repairs_of(scheme: OpScheme) -> tuple[PartChoice, ...]:
    """Return the steps of a scheme's weight algorithms that add a low-rank repair."""
    return tuple(step for step in scheme.algorithms if step.kind == LOW_RANK)


def without_repairs(scheme: OpScheme) -> OpScheme:
    """Return a scheme without its low-rank repairs; what they alone round is rounded to nearest."""
    refined = tuple(step for step in scheme.refined_by if step.kind != LOW_RANK)
    algorithm = RTN if scheme.algorithm.kind == LOW_RANK else scheme.algorithm
    return scheme.variant(algorithm=algorithm, refined_by=refined)


def repair_bytes(repair: PartChoice, rows: int, features: int) -> int:
    """Return the bytes of a repair's two factors for a matrix: rank x (rows + features) numbers.

    Args:
        repair: The algorithm ``low_rank`` with its settings.
        rows: Of the matrix.
        features: Of the matrix; a rank above the smaller of both is cut to it.

    Raises:
        SchemeError: If a setting is none that it takes.
    """
    options = dict(repair.options)
    rank = options.get("rank", REPAIR_RANK)
    width = _FACTOR_BYTES.get(str(options.get("dtype", REPAIR_DTYPE)))
    if not isinstance(rank, int) or rank < 1 or width is None:
        raise SchemeError(
            f"{repair}: a low-rank repair has a rank of at least 1 and factors of "
            f"{', '.join(_FACTOR_BYTES)}"
        )
    return min(rank, rows, features) * (rows + features) * width


def _packed(count: int, bits: int) -> int:
    """Return the bytes of codes that lie side by side; the last byte may be filled in part."""
    return -(-count * bits // 8)


def _scale_count(
    spec: QuantSpec, shape: tuple[int, ...], channel_axis: int | None
) -> int:
    if spec.granularity == "token":
        return prod(shape[:-1])
    if channel_axis is None or not shape:
        return 1
    rows = shape[channel_axis]
    features = prod(shape) // rows if rows else 0
    return prod(scale_shape(rows, features, spec))


def _scale_bytes(spec: QuantSpec, scales: int) -> int:
    # The block formats fix the format of their scales: e8m0, or fp8_e4m3fn in nvfp4.
    is_one_byte = spec.dtype.startswith(("mx", "nvfp"))
    width = (
        1 if is_one_byte else _SCALE_BYTES.get(spec.scale_dtype or "", _FLOAT32_BYTES)
    )
    return scales * width + _second_level_bytes(spec, scales)


def _second_level_bytes(spec: QuantSpec, scales: int) -> int:
    if spec.dtype == "nvfp4" or spec.scale_dtype == "fp8_e4m3fn":
        return _FLOAT32_BYTES
    if spec.scale_dtype == "uint8":
        blocks = -(-scales // DOUBLE_BLOCK)
        return 2 * _FLOAT32_BYTES * blocks  # a scale and an offset each
    return 0


def _zero_point_bytes(spec: QuantSpec, scales: int) -> int:
    is_integer = spec.dtype.lstrip("u").startswith("int")
    return _packed(scales, spec.bits) if is_integer and not spec.symmetric else 0
