"""Packing, rounding modes, blocks and rows."""

from __future__ import annotations

import pickle
import tracemalloc
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given as given_data
from hypothesis import settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from octavo.core.errors import NonFiniteWeight, SchemeError
from octavo.core.numerics import packing
from octavo.core.numerics.affine import affine_params, quantize
from octavo.core.numerics.blocked import round_blocked, takes
from octavo.core.numerics.codec import choose_params, decode, encode
from octavo.core.numerics.layout import from_matrix, stretch, to_matrix
from octavo.core.numerics.packing import pack, unpack
from octavo.core.numerics.ranges import ranges, token_params
from octavo.core.numerics.rounding import given, nearest, stochastic
from octavo.core.numerics.rows import Rows
from octavo.core.numerics.tensor import PackedTensor, QuantizedTensor, compact
from octavo.core.values.scheme import QuantSpec
from tests.arrays import MAKERS, each_kind


@given_data(
    bits=st.integers(1, 8),
    count=st.integers(0, 40),
    signed=st.booleans(),
    order=st.sampled_from(["low", "high"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_packing_round_trip(
    bits: int, count: int, signed: bool, order: Any, seed: int
) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    codes = (
        np.random.default_rng(seed)
        .integers(low, low + 2**bits, (3, count))
        .astype(np.int8 if signed else np.uint8)
    )
    packed = pack(codes, bits, order)
    assert packed.shape == (3, -(-count * bits // 8))
    np.testing.assert_array_equal(
        unpack(packed, bits, count, signed=signed, order=order), codes
    )
    for make in MAKERS.values():
        there = pack(make(codes), bits, order)
        np.testing.assert_array_equal(np.asarray(there), packed)
        back = unpack(there, bits, count, signed=signed, order=order)
        np.testing.assert_array_equal(np.asarray(back), codes)


@pytest.mark.parametrize(
    ("code", "bits"),
    [
        (TensorProto.INT4, 4),
        (TensorProto.UINT4, 4),
        (TensorProto.INT2, 2),
        (TensorProto.UINT2, 2),
    ],
)
def test_low_first_is_how_onnx_stores(code: int, bits: int) -> None:
    signed = code in (TensorProto.INT4, TensorProto.INT2)
    values = np.random.default_rng(0).integers(
        -(2 ** (bits - 1)) if signed else 0, 2 ** (bits - signed), 24
    )
    raw = pack(values.astype(np.int8), bits).tobytes()
    tensor = helper.make_tensor("t", code, (24,), raw, raw=True)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(int), values)


def test_three_bit_codes_run_over_byte_borders() -> None:
    # 8 codes of 3 bits, as one little-endian number of 24
    codes = np.asarray([1, 2, 3, 4, 5, 6, 7, 0], np.uint8)
    assert int.from_bytes(pack(codes, 3).tobytes(), "little") == sum(
        int(c) << 3 * i for i, c in enumerate(codes)
    )


def test_packing_refuses_wide_codes() -> None:
    with pytest.raises(SchemeError, match="16 bits"):
        pack(np.zeros(3, np.int16), 16)


def test_stochastic_rounding_is_seeded_and_unbiased() -> None:
    x = np.full((200, 100), 0.3, np.float32)
    rounded = stochastic(7)(x)
    assert set(np.unique(rounded)) == {0.0, 1.0}
    assert rounded.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_array_equal(rounded, stochastic(7)(x))
    assert (rounded != stochastic(8)(x)).any()
    for make in MAKERS.values():
        np.testing.assert_array_equal(rounded, np.asarray(stochastic(7)(make(x))))


def test_given_rounding_decides_up_or_down() -> None:
    spec = QuantSpec(dtype="int4")
    x = np.asarray([0.2, 0.7, -0.2, 1.0], np.float32)
    params = affine_params(np.float32(-7), np.float32(7), spec)
    assert quantize(
        x, params, given(np.asarray([True, False, True, False]))
    ).tolist() == [
        1,
        0,
        0,
        1,
    ]
    assert nearest(np.asarray([0.5, 1.5, -2.5], np.float32)).tolist() == [
        0.0,
        2.0,
        -2.0,
    ]


CASES = [
    ("int8", True),
    ("uint8", False),
    ("uint8", True),
    ("int4", True),
    ("uint4", False),
    ("int2", True),
    ("int8", False),
]


@pytest.mark.parametrize(
    "granularity",
    ["channel", "group:32", "group:6", "group:8", "group:96", "group:320"],
)
@pytest.mark.parametrize("scales", [None, "float16", "bfloat16", "uint8"])
@pytest.mark.parametrize(("dtype", "symmetric"), CASES)
def test_blocked_rounding_equals_the_plain_one(
    dtype: str, symmetric: bool, granularity: str, scales: str | None
) -> None:
    spec = QuantSpec(
        dtype=dtype, symmetric=symmetric, granularity=granularity, scale_dtype=scales
    )
    x = np.random.default_rng(0).normal(size=(300, 960)).astype(np.float32)
    x[1], x[2], x[0, :64], x[0, 64] = 0, 3.0, 0, 1e-45
    # One sign, ties, negative zeros.
    x[3], x[4], x[5], x[6] = (
        -np.abs(x[3]),
        np.abs(x[4]),
        np.round(x[5]) * 0.5,
        -0.0,
    )
    params, second = choose_params(*ranges(x, spec), spec, 0)
    expected = encode(x, params)
    kinds = [make(x) for make in MAKERS.values()]
    for matrix in (*kinds, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        assert takes(matrix, spec)
        codes, found, extra = round_blocked(matrix, spec)
        assert (extra or {}).keys() == (second or {}).keys()
        for name, value in (second or {}).items():
            np.testing.assert_array_equal(np.asarray((extra or {})[name]), value)
        np.testing.assert_array_equal(np.asarray(codes), expected)
        assert str(codes.dtype).endswith(str(expected.dtype))
        np.testing.assert_array_equal(np.asarray(found.scale), params.scale)
        np.testing.assert_array_equal(np.asarray(found.zero_point), params.zero_point)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(dtype="int8", granularity="channel"),
        QuantSpec(dtype="uint4", symmetric=False, granularity="group:4"),
        QuantSpec(dtype="int4", granularity="group:8"),
        QuantSpec(dtype="uint4", symmetric=False, granularity="channel"),
    ],
    ids=str,
)
def test_non_finite_weights_are_refused(bad: float, spec: QuantSpec) -> None:
    x = np.ones((4, 8), np.float32)
    x[2, 5] = bad
    for matrix in [make(x) for make in MAKERS.values()]:
        with pytest.raises(NonFiniteWeight):
            round_blocked(matrix, spec)
        with pytest.raises(NonFiniteWeight):
            ranges(matrix, spec)


def test_blocked_rounding_needs_little_memory() -> None:
    x = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
    for granularity in ("channel", "group:32"):
        tracemalloc.start()
        codes, params, _ = round_blocked(
            x, QuantSpec(dtype="int4", granularity=granularity)
        )
        extra = (
            tracemalloc.get_traced_memory()[1]
            - codes.nbytes
            - params.scale.nbytes
            - params.zero_point.nbytes
        )
        tracemalloc.stop()
        assert extra <= x.nbytes / 4


@each_kind
@pytest.mark.parametrize(
    ("dtype", "symmetric"), [("int8", True), ("uint8", False), ("fp8_e4m3fn", True)]
)
def test_each_token_has_a_scale(dtype: str, symmetric: bool, make: Any) -> None:
    x = (
        np.random.default_rng(0).normal(size=(2, 5, 16))
        * np.logspace(-3, 3, 5)[None, :, None]
    ).astype(np.float32)
    spec = QuantSpec(dtype=dtype, symmetric=symmetric, granularity="token")
    params = token_params(make(x), spec)
    assert tuple(params.scale.shape) == (2, 5, 1)
    codes = encode(make(x), params)
    numbers = np.asarray(decode(codes, params))
    for i in range(2):
        for j in range(5):
            whole, _ = choose_params(
                x[i, j].min(),
                x[i, j].max(),
                QuantSpec(dtype=dtype, symmetric=symmetric),
                None,
            )
            np.testing.assert_array_equal(
                numbers[i, j], decode(encode(x[i, j], whole), whole)
            )


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_matrix_and_back(axis: int) -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    matrix = to_matrix(x, axis)
    assert matrix.shape == (x.shape[axis], 24 // x.shape[axis])
    np.testing.assert_array_equal(from_matrix(matrix, x.shape, axis), x)


def test_block_parameters_stretch_to_short_ends() -> None:
    p = np.asarray([[1, 2], [3, 4]])
    assert stretch(p, (3, 5), 2, 3).tolist() == [
        [1, 1, 1, 2, 2],
        [1, 1, 1, 2, 2],
        [3, 3, 3, 4, 4],
    ]


CONVOLUTIONS = [
    ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    ((3, 2), (1, 2), (0, 1, 2, 1), (2, 1), 2),
    ((3,), (1,), (1, 1), (1,), 8),
    ((2, 2, 3), (1, 1, 2), (0, 0, 1, 0, 0, 1), (1, 1, 1), 1),
]


@pytest.mark.parametrize(
    ("kernel", "strides", "pads", "dilations", "groups"), CONVOLUTIONS
)
def test_rows_are_what_the_weight_multiplies(
    kernel: Any, strides: Any, pads: Any, dilations: Any, groups: int
) -> None:
    torch = pytest.importorskip("torch")
    n = len(kernel)
    x, w = torch.randn(3, 8, *[7] * n), torch.randn(16, 8 // groups, *kernel)
    convolve = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[n]
    ends = [width for i in reversed(range(n)) for width in (pads[i], pads[n + i])]
    y = convolve(
        torch.nn.functional.pad(x, ends),
        w,
        stride=strides,
        dilation=dilations,
        groups=groups,
    )
    rows = torch.cat(list(Rows(kernel, strides, pads, dilations, groups).chunks(x)), 1)
    product = torch.einsum(
        "grf,gof->rgo", rows, w.reshape(groups, 16 // groups, -1)
    ).reshape(3, -1, 16)
    torch.testing.assert_close(
        product, y.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4
    )
    on_numpy = np.concatenate(
        list(Rows(kernel, strides, pads, dilations, groups).chunks(x.numpy())), 1
    )
    np.testing.assert_array_equal(on_numpy, rows.numpy())


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2", "nf4"])
@pytest.mark.parametrize("backend", MAKERS.values(), ids=MAKERS)
def test_a_packed_tensor_is_the_tensor_in_fewer_bytes(
    dtype: str, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_CHUNK", 64)
    spec = QuantSpec(dtype=dtype, granularity="channel")
    signed = dtype.startswith("int")
    low = -(2 ** (spec.bits - 1)) if signed else 0
    codes = backend(
        np.random.default_rng(0)
        .integers(low, low + 2**spec.bits, (7, 3, 11))
        .astype(np.int8 if signed else np.uint8)
    )
    params = affine_params(
        backend(-np.ones(7, np.float32)),
        backend(np.ones(7, np.float32)),
        QuantSpec(dtype="int8", granularity="channel"),
        0,
    )
    plain = QuantizedTensor(codes, replace(params, spec=spec))
    packed = compact(plain)
    for one in (packed, deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert isinstance(one, PackedTensor)
        assert one.shape == (7, 3, 11)
        assert one.codes.dtype == codes.dtype
        assert bool((one.codes == codes).all())
        assert one.packed.nbytes == -(-7 * 3 * 11 * spec.bits // 8)
    assert packed.nbytes == plain.nbytes
    wide = QuantizedTensor(codes, params)
    assert compact(wide) is wide
