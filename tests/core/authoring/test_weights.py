"""Weights as arrays that broadcast: their numbers are those of the tensor."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec
from octavo.plugin import Op, OpScheme, Weight, one_op_parameters, weight_parts


def quantized(shape: tuple[int, ...], axis: int, spec: QuantSpec) -> QuantizedTensor:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    op = Op("op", "linear", ("x",), ("y",), Weight("w", shape, channel_axis=axis))
    scheme = OpScheme(mode="weight_only", weight=spec)
    found = one_op_parameters(op, scheme, {"w": array}).weight
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("own", "stored", "axis"),
    [
        ((6, 8), (6, 8), 0),
        ((6, 8), (6, 8, 1, 1), 0),
        ((8, 3, 3, 3), (8, 3, 3, 3), 0),
        ((8, 1, 3, 3), (4, 2, 1, 3, 3), 0),
        ((8, 1, 3, 3), (8, 1, 1, 3, 3), 0),
        ((4, 6, 3, 3), (4, 6, 3, 3), 1),
        ((4, 6, 3, 3), (2, 2, 6, 3, 3), 1),
        ((1, 12, 5), (1, 12, 5), 1),
    ],
)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_parts_are_the_numbers_of_the_tensor(
    own: tuple[int, ...],
    stored: tuple[int, ...],
    axis: int,
    granularity: str,
    dtype: str,
) -> None:
    spec = QuantSpec(dtype=dtype, symmetric=dtype == "int8", granularity=granularity)
    tensor = quantized(own, axis, spec)
    parts = weight_parts(tensor, stored, axis)
    zero = 0 if parts.zero_point is None else parts.zero_point.astype(np.int32)
    numbers = (parts.codes.astype(np.int32) - zero) * parts.scale
    assert numbers.shape == parts.shape == stored
    np.testing.assert_allclose(numbers.reshape(own), tensor.dequantize(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int4", "uint4"])
def test_blocks_have_an_axis_of_their_own(dtype: str) -> None:
    spec = QuantSpec(
        dtype=dtype,
        symmetric=not dtype.startswith("u"),
        granularity="group:4",
        scale_dtype="float16",
    )
    tensor = quantized((6, 12), 0, spec)
    parts = weight_parts(tensor)
    assert parts.codes.shape == (6, 3, 4)
    assert parts.scale.shape == (6, 3, 1)
    assert parts.scale.dtype == np.float16
    zero = 0 if parts.zero_point is None else parts.zero_point.astype(np.int32)
    steps = parts.codes.astype(np.int32) - zero
    numbers = (steps * parts.scale.astype(np.float32)).reshape(parts.shape)
    np.testing.assert_allclose(numbers, tensor.dequantize(), rtol=1e-6)
