"""FBGEMM's linear kernel, which quantizes and multiplies in one call: the fastest for few rows."""

from __future__ import annotations

import warnings
from functools import cache
from math import nan
from typing import Any

import torch

from .faults import Pair, exact_product, fault, seven_bit_weight

Tensor = torch.Tensor

# Looked up once: for few rows the way to an operator's name is as long as what it computes. None
# where a build of torch lacks it.
ROWS_DYNAMIC: Any = getattr(torch.ops.quantized, "linear_dynamic", None)
ROWS_STATIC: Any = getattr(
    torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32", None
)


def pack_rows(codes: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    """Lay int8 codes out for :func:`linear_rows`, with scales and bias."""
    outputs = codes.shape[0]
    scales = scale.double().expand(outputs).contiguous()
    zero_points = torch.zeros(outputs, dtype=torch.int64)
    with warnings.catch_warnings():
        # torch announces the end of its quantized tensors; while they are there this kernel is the
        # fastest for few rows.
        warnings.simplefilter("ignore")
        weight = torch._make_per_channel_quantized_tensor(codes, scales, zero_points, 0)
        # The form of a packed weight is that of the engine which is chosen at this moment.
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            return torch.ops.quantized.linear_prepack(weight, bias)
        finally:
            torch.backends.quantized.engine = engine


def linear_rows(
    x: Tensor, packed: Any, scale: float | None = None, zero_point: int = 0
) -> Tensor:
    """Quantize float32 ``x`` (asymmetric, per tensor) and multiply, in one call.

    Args:
        x: Values, shape (..., inputs).
        packed: From :func:`pack_rows`.
        scale: Their scale; None takes their own range.
        zero_point: Code of zero, beside a scale.
    """
    y: Tensor
    if scale is not None:
        y = ROWS_STATIC(x, scale, zero_point, packed)
        return y
    try:
        y = ROWS_DYNAMIC(x, packed, False)
    except RuntimeError:
        if bool(x.isfinite().all()):
            raise
        # The kernel finds no range; sums over such numbers are NaN in float.
        outputs = torch.ops.quantized.linear_unpack(packed)[0].shape[0]
        y = x.new_full((*x.shape[:-1], outputs), nan)
    return y


@cache
def missing_rows() -> str:
    """Return why the one-call kernel for few rows cannot be used.

    Empty when it was run and was right.
    """

    def run(generator: torch.Generator) -> Pair:
        x = torch.randn(3, 64, generator=generator)
        w, scale = seven_bit_weight(generator, 32, 64)
        packed = pack_rows(w, scale, None)
        dynamic = linear_rows(x, packed)
        static = linear_rows(x, packed, 0.04, 128)
        exact = exact_product(x, w, scale)
        return torch.cat([dynamic, static]), torch.cat([exact, exact])

    return fault("torch.ops.quantized.linear_dynamic", 0.02, run)
