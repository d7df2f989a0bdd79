"""Integer types against onnx's reference evaluator, bit for bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from octavo.core.numerics.affine import (
    QuantParams,
    affine_params,
    dequantize,
    narrow,
    quantize,
)
from octavo.core.values.scheme import QuantSpec
from tests.arrays import MAKERS

# Asymmetric specs use every code, as QuantizeLinear saturates.
TYPES = {
    "int8": (TensorProto.INT8, np.int8),
    "uint8": (TensorProto.UINT8, np.uint8),
    "int16": (TensorProto.INT16, np.int16),
    "uint16": (TensorProto.UINT16, np.uint16),
    "int4": (TensorProto.INT4, ml_dtypes.int4),
    "uint4": (TensorProto.UINT4, ml_dtypes.uint4),
    "int2": (TensorProto.INT2, ml_dtypes.int2),
    "uint2": (TensorProto.UINT2, ml_dtypes.uint2),
}


def model(
    dtype: str,
    axis: int | None,
    block: int,
    shape: tuple[int, ...],
    scale_shape: tuple[int, ...],
) -> ReferenceEvaluator:
    code = TYPES[dtype][0]
    attributes: dict[str, int] = {} if axis is None else {"axis": axis}
    if block:
        attributes["block_size"] = block
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, scale_shape),
        helper.make_tensor_value_info("z", code, scale_shape),
    ]
    outputs = [
        helper.make_tensor_value_info("q", code, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, shape),
    ]
    graph = helper.make_graph(nodes, "q", inputs, outputs)
    return ReferenceEvaluator(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
    )


def compare(
    x: np.ndarray, params: QuantParams, dtype: str, axis: int | None, block: int = 0
) -> None:
    shape = tuple(params.scale.shape)
    feeds = {
        "x": x,
        "s": np.asarray(params.scale),
        "z": np.asarray(params.zero_point).astype(TYPES[dtype][1]),
    }
    expected_codes, expected = model(dtype, axis, block, x.shape, shape).run(
        None, feeds
    )
    for make in MAKERS.values():
        own = QuantParams(
            make(params.scale), make(params.zero_point), params.spec, params.axis
        )
        found = quantize(make(x), own)
        np.testing.assert_array_equal(
            np.asarray(found), expected_codes.astype(np.int32)
        )
        np.testing.assert_array_equal(np.asarray(dequantize(found, own)), expected)
    codes = quantize(x, params)
    np.testing.assert_array_equal(narrow(codes, params.spec), codes)


@pytest.mark.parametrize("dtype", TYPES)
@given(
    x=arrays(np.float32, (3, 8), elements=st.floats(-1024, 1024, width=32)),
    low=st.floats(-128, -0.0625, width=32),
    high=st.floats(0.0625, 128, width=32),
)
@settings(max_examples=25, deadline=None)
def test_tensor(dtype: str, x: np.ndarray, low: float, high: float) -> None:
    spec = QuantSpec(dtype=dtype, symmetric=False)
    compare(
        x,
        affine_params(np.asarray(low, np.float32), np.asarray(high, np.float32), spec),
        dtype,
        None,
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_ties_and_ends(dtype: str) -> None:
    spec = QuantSpec(dtype=dtype, symmetric=False)
    params = QuantParams(
        np.float32(0.5) * np.ones((), np.float32), np.zeros((), np.int32), spec
    )
    x = np.asarray(
        [0.25, 0.75, 1.25, -0.25, -0.75, 0.0, -0.0, 1e8, -1e8, 1e-45], np.float32
    )
    compare(x, params, dtype, None)


def test_the_largest_numbers_saturate() -> None:
    # Beyond the range of int32, where onnx's evaluator wraps around.
    params = QuantParams(
        np.full((), 2.0, np.float32),
        np.zeros((), np.int32),
        QuantSpec(dtype="int8", symmetric=False),
    )
    x = np.asarray([1e30, -1e30, 3.4e38, -3.4e38], np.float32)
    for make in MAKERS.values():
        own = QuantParams(make(params.scale), make(params.zero_point), params.spec)
        assert quantize(make(x), own).tolist() == [127, -128, 127, -128]


@pytest.mark.parametrize("dtype", ["int8", "uint4", "int16"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channel(dtype: str, axis: int) -> None:
    x = np.random.default_rng(axis).normal(size=(4, 5, 6)).astype(np.float32)
    others = tuple(i for i in range(3) if i != axis)
    spec = QuantSpec(dtype=dtype, symmetric=False, granularity="channel")
    compare(x, affine_params(x.min(others), x.max(others), spec, axis), dtype, axis)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint2"])
def test_groups_are_blocked_quantization(dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    grouped = x.reshape(6, 4, 16)
    spec = QuantSpec(dtype=dtype, symmetric=False, granularity="group:16")
    compare(x, affine_params(grouped.min(2), grouped.max(2), spec, 0), dtype, 1, 16)


def test_the_opset_of_these_tests_is_the_one_that_the_module_cites() -> None:
    assert onnx.defs.get_schema("QuantizeLinear", 25).since_version == 25


def test_symmetric_codes_are_balanced_from_seven_bits_on() -> None:
    x = np.asarray([-1.0, 1.0], np.float32)
    for dtype, lowest in (
        ("int8", -127),
        ("int16", -32767),
        ("int7", -63),
        ("int4", -7),
        ("int2", -1),
    ):
        spec = QuantSpec(dtype=dtype)
        assert quantize(x, affine_params(x.min(), x.max(), spec)).tolist() == [
            lowest,
            -lowest,
        ]


def test_reduced_range_gives_up_one_bit() -> None:
    x = np.linspace(-1, 1, 99, dtype=np.float32)
    for dtype, symmetric, low, high in (
        ("int8", True, -63, 63),
        ("uint8", False, 0, 127),
        ("int8", False, -64, 63),
    ):
        spec: Any = QuantSpec(dtype=dtype, symmetric=symmetric, reduce_range=True)
        codes = quantize(x, affine_params(x.min(), x.max(), spec))
        assert (codes.min(), codes.max()) == (low, high)
