"""One function knows what a quantized tensor takes: the space believes it, the tensor states it,
and its arrays have it."""

from __future__ import annotations

from itertools import product
from math import ceil, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.contract.algorithm import WeightContext
from octavo.core.numerics.affine import is_integer
from octavo.core.numerics.tensor import QuantizedTensor, compact
from octavo.core.quantizing.algorithms import RtnConfig
from octavo.core.quantizing.algorithms.rtn import RoundToNearest
from octavo.core.values.graph import Group, ModelView, Op, Weight
from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec
from octavo.core.values.sizes import stored_bytes
from octavo.core.values.space import Unit
from octavo.core.values.units import find_units

INTEGERS = (
    "int2",
    "uint2",
    "int3",
    "uint3",
    "int4",
    "uint4",
    "int5",
    "int7",
    "int8",
    "uint8",
)
BLOCKS = ("nvfp4", "mxint8", "mxfp8", "mxfp8_e5m2", "mxfp6", "mxfp4")
FLOATS = ("fp8_e4m3fn", "fp8_e5m2", "fp6", "fp4", "float16", "bfloat16")
DTYPES = (*INTEGERS, "int16", "uint16", "nf4", *BLOCKS, *FLOATS)
GRANULARITIES = ("tensor", "channel", "group:32", "group:7", "block:3x5")
SCALES = (None, "float32", "float16", "bfloat16", "e8m0", "fp8_e4m3fn", "uint8")


def bytes_of_its_arrays(tensor: QuantizedTensor) -> int:
    """Count what is there: codes in their bits, scales in their format, the second level, zero
    points."""
    spec = tensor.params.spec
    if spec.dtype in ("float16", "bfloat16"):
        return tensor.codes.nbytes
    scales = prod(tensor.params.scale.shape)
    width = {None: 4, "float32": 4, "float16": 2, "bfloat16": 2}.get(
        spec.scale_dtype, 1
    )
    if spec.dtype.startswith(("mx", "nvfp")):
        width = 1
    second = tensor.extra or {}
    levels = sum(
        second[k].nbytes for k in ("scale_scale", "scale_offset") if k in second
    )
    zero_points = prod(tensor.params.zero_point.shape)
    kept = zero_points if is_integer(spec) and not spec.symmetric else 0
    return (
        ceil(prod(tensor.codes.shape) * spec.bits / 8)
        + scales * width
        + levels
        + ceil(kept * spec.bits / 8)
    )


def quantized(spec: QuantSpec, shape: tuple[int, int]) -> QuantizedTensor:
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return RoundToNearest(RtnConfig()).quantize(matrix, spec, WeightContext())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_belief_statement_and_arrays_agree(dtype: str, granularity: str) -> None:
    for symmetric, shape in product(
        (True, False), ((24, 96), (5, 13), (1, 1), (7, 300))
    ):
        spec = QuantSpec(dtype=dtype, granularity=granularity, symmetric=symmetric)
        made = quantized(spec, shape)
        assert made.nbytes == bytes_of_its_arrays(made)
        assert compact(made).nbytes == made.nbytes
        scheme = OpScheme(mode="weight_only", weight=spec)
        unit = Unit("u", "linear", ("u",), (scheme, FLOAT), "", prod(shape), shape[0])
        assert unit.weight_bytes(scheme) == made.nbytes


@settings(deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    granularity=st.sampled_from(GRANULARITIES),
    scale_dtype=st.sampled_from(SCALES),
    symmetric=st.booleans(),
    rows=st.integers(1, 70),
    features=st.integers(1, 70),
)
def test_any_format_of_the_scales(
    dtype: str,
    granularity: str,
    scale_dtype: str | None,
    symmetric: bool,
    rows: int,
    features: int,
) -> None:
    spec = QuantSpec(
        dtype=dtype,
        granularity=granularity,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
    )
    made = quantized(spec, (rows, features))
    assert made.nbytes == bytes_of_its_arrays(made)


def test_the_channel_axis_of_the_tensor_counts() -> None:
    spec = QuantSpec(dtype="int4", granularity="group:8")
    assert stored_bytes(spec, (3, 10, 2), 1) == 60 // 2 + 4 * 10
    assert stored_bytes(spec, (3, 10, 2), -1) == 60 // 2 + 4 * 2 * 4
    assert stored_bytes(QuantSpec(dtype="int8"), (3, 10, 2), None) == 60 + 4
    assert (
        stored_bytes(QuantSpec(dtype="int8", granularity="token"), (3, 10, 2), None)
        == 60 + 120
    )


def test_a_unit_counts_each_of_its_weights() -> None:
    spec = QuantSpec(dtype="int4", granularity="group:32")
    scheme = OpScheme(mode="weight_only", weight=spec)
    shapes = ((8, 40), (6, 100))
    ops = tuple(
        Op(f"op{i}", "linear", (), (), Weight(f"w{i}", shape))
        for i, shape in enumerate(shapes)
    )
    view = ModelView(ops, (Group("both", "scheme", ("op0", "op1")),))
    (unit,), _ = find_units(view, {op.name: (scheme, FLOAT) for op in ops})
    assert unit.weight_bytes(scheme) == sum(
        stored_bytes(spec, shape) for shape in shapes
    )
    assert unit.weight_bytes(FLOAT) == 4 * (320 + 600)
