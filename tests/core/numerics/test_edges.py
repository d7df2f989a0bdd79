"""What the numerics do at their edges: sizes, threads, blocks, dtypes, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.errors import NonFiniteWeight, SchemeError
from octavo.core.numerics import blocked
from octavo.core.numerics.affine import (
    affine_params,
    dequantize,
    integer_range,
    middle_code,
    narrow,
    nonzero,
    quantize,
    steps,
)
from octavo.core.numerics.blocked import round_blocked, takes
from octavo.core.numerics.channels import ChannelMap, as_map, chained, channel_maps
from octavo.core.numerics.codec import (
    choose_params,
    decode,
    encode,
    known_dtype,
    project,
)
from octavo.core.numerics.extremes import extremes, numpy_extremes
from octavo.core.numerics.hadamard import hadamard, hadamard_parts, rotate
from octavo.core.numerics.layout import contiguous, from_matrix, stretch, to_matrix
from octavo.core.numerics.packing import pack, pack_stream, unpack, unpack_stream
from octavo.core.numerics.ranges import ranges, token_params
from octavo.core.numerics.rounding import given, stochastic
from octavo.core.numerics.rows import Rows, _cropped, rounding_rows, rows_of
from octavo.core.numerics.tensor import PackedTensor, QuantizedTensor, compact
from octavo.core.values.graph import Group, Op, Weight
from octavo.core.values.scheme import QuantSpec
from tests.arrays import each_kind

INTS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 3, 4, 6, 8, 16)]
NOT_FINITE = "a weight holds NaN or Inf; repair it, or keep its op in float with a rule"


def spec_of(dtype: str, **more: Any) -> QuantSpec:
    return QuantSpec(dtype=dtype, **more)


# Integers


@pytest.mark.parametrize("dtype", INTS)
def test_ranges_and_middles(dtype: str) -> None:
    bits = int(dtype.lstrip("uint"))
    for symmetric in (True, False):
        low, high = integer_range(spec_of(dtype, symmetric=symmetric))
        if dtype.startswith("u"):
            assert (low, high) == (0, 2**bits - 1)
        else:
            balanced = symmetric and bits >= 7
            assert (low, high) == (-(2 ** (bits - 1)) + balanced, 2 ** (bits - 1) - 1)
    middle = middle_code(spec_of(dtype))
    assert middle == (2 ** (bits - 1) if dtype[0] == "u" else 0)
    assert isinstance(middle, int)
    if bits == 8 and dtype[0] == "i":
        assert integer_range(spec_of(dtype, reduce_range=True)) == (-63, 63)


@pytest.mark.parametrize("dtype", INTS)
def test_codes_are_stored_in_the_narrowest_type(dtype: str) -> None:
    spec = spec_of(dtype, symmetric=False)
    ends = integer_range(spec)
    bits = int(dtype.lstrip("uint"))
    found = narrow(np.asarray(ends, np.int32), spec)
    assert found.dtype == np.dtype(
        f"{dtype.rstrip('0123456789')}{8 if bits <= 8 else 16}"
    )
    np.testing.assert_array_equal(found, ends)


def test_no_integer_type_is_refused() -> None:
    with pytest.raises(SchemeError) as raised:
        integer_range(spec_of("nf4"))
    assert str(raised.value) == (
        "'nf4' is no integer type; affine quantization takes int2 to int16 and uint2 to uint16"
    )


def test_ranges_that_leave_zero_out() -> None:
    spec = spec_of("uint8", symmetric=False)
    low, high = np.float64([3, -9]), np.float64([5, -4])
    inside = affine_params(low, high, spec)
    np.testing.assert_allclose(inside.scale, [5 / 255, 9 / 255], rtol=1e-6)
    np.testing.assert_array_equal(inside.zero_point, [0, 255])
    for convention in ("octavo", "pytorch"):
        outside = affine_params(
            low, high, spec, 0, convention=convention, include_zero=False
        )
        np.testing.assert_allclose(outside.scale, [2 / 255, 5 / 255], rtol=1e-6)
        np.testing.assert_array_equal(outside.zero_point, [-382, 459])
        assert outside.axis == 0
        assert outside.scale.dtype == np.float32
        assert outside.zero_point.dtype == np.int32
    # A scale that is given need not hold the range: the zero point stays a code.
    small = affine_params(low, -low, spec, scale=np.float32([0.01, 0.01]))
    np.testing.assert_array_equal(small.zero_point, [0, 255])
    np.testing.assert_array_equal(small.scale, np.float32([0.01, 0.01]))
    clipped = affine_params(low, high, spec, convention="pytorch")
    np.testing.assert_array_equal(clipped.zero_point, [0, 255])


@pytest.mark.parametrize("convention", ["octavo", "tensorflow", "pytorch", "ipex"])
@pytest.mark.parametrize("reduced", [False, True])
def test_symmetric_scales_of_all_conventions(convention: Any, reduced: bool) -> None:
    low, high = np.float32([-3, -1, 0]), np.float32([2, 4, 0])
    bits = 8 - reduced
    for dtype in ("int8", "uint8"):
        spec = spec_of(dtype, reduce_range=reduced)
        found = affine_params(low, high, spec, convention=convention)
        absmax, steps_up, middle = np.float64([3, 4, 0]), 2 ** (bits - 1) - 1.0, 0
        if convention == "pytorch":
            steps_up = (2**bits - 1) / 2
        if dtype == "uint8":
            middle = 2 ** (bits - 1)
            if convention in ("tensorflow", "ipex"):
                absmax, steps_up, middle = np.float64([2, 4, 0]), 2**bits - 1.0, 0
        expected = absmax / steps_up
        expected[2] = 1
        np.testing.assert_allclose(found.scale, expected, rtol=1e-6)
        np.testing.assert_array_equal(found.zero_point, [middle] * 3)
        assert found.zero_point.dtype == np.int32 and found.axis is None


def test_scales_below_the_normal_numbers_count_as_zero() -> None:
    tiny = np.finfo(np.float32).tiny
    found = nonzero(np.float32([0, tiny / 2, tiny, 1]))
    np.testing.assert_array_equal(found, np.float32([1, 1, tiny, 1]))


def test_steps_do_not_overflow() -> None:
    spec = spec_of("uint8", symmetric=False)
    x = np.float64([-1e30, -0.6, 0.5, 1.5, 1e30])
    found = steps(x, np.float32(1), np.int32(3), spec)
    np.testing.assert_array_equal(found, [-3, -1, 0, 2, 252])
    assert found.dtype == np.float32
    params = affine_params(np.float32(-3), np.float32(252), spec)
    codes = quantize(x, params)
    np.testing.assert_array_equal(codes, [0, 2, 3, 5, 255])
    assert codes.dtype == np.int32
    back = dequantize(codes.astype(np.uint8), params)
    np.testing.assert_array_equal(back, [-3, -1, 0, 2, 252])
    assert back.dtype == np.float32
    up = quantize(x, params, np.ceil)
    np.testing.assert_array_equal(up, [0, 3, 4, 5, 255])


# Rounding in blocks


def test_what_is_rounded_in_blocks() -> None:
    matrix = np.zeros((4, 8), np.float32)
    channel = spec_of("int8", granularity="channel")
    assert takes(matrix, channel)
    assert takes(matrix, spec_of("uint2", granularity="group:4", symmetric=False))
    assert takes(matrix, spec_of("int8", granularity="channel", scale_dtype="float16"))
    for dtype in (np.float64, np.float16):
        assert not takes(matrix.astype(dtype), channel)
    assert not takes(matrix[:0], channel)
    assert not takes(matrix.tolist(), channel)
    for refused in (
        spec_of("int16", granularity="channel"),
        spec_of("nf4", granularity="channel"),
        spec_of("int8", granularity="tensor"),
        spec_of("int8", granularity="block:2x2"),
        spec_of("int8", granularity="group:3"),
    ):
        assert not takes(matrix, refused)


def test_blocks_of_numpy_are_within_a_quarter_of_the_matrix() -> None:
    # From 32 Ki elements to 256 Ki, a sixteenth of a worker's share between.
    assert blocked._numpy_block(10, 1) == 2**15
    assert blocked._numpy_block(2**30, 2) == 2**18
    assert blocked._numpy_block(2**22, 2) == 2**17
    assert blocked._numpy_block(2**22, 4) == 2**16


@each_kind
@pytest.mark.parametrize("granularity", ["channel", "group:8", "group:256"])
@pytest.mark.parametrize("scale_dtype", [None, "float16", "uint8"])
@pytest.mark.parametrize(
    ("dtype", "symmetric"),
    [
        ("int4", True),
        ("uint8", True),
        ("uint3", False),
        ("int8", False),
        ("int8", True),
    ],
)
def test_blocks_give_what_the_whole_gives(
    make: Any,
    granularity: str,
    scale_dtype: str | None,
    dtype: str,
    symmetric: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(11, 512)).astype(np.float32)
    weight[3], weight[4, :256], weight[5] = 0, 1e-40, np.abs(weight[5])
    weight[6] = -np.abs(weight[6])
    # With seven steps the smallest scale that is one.
    weight[8] = 7 * np.finfo(np.float32).tiny
    # A few rows at a time, on several threads.
    monkeypatch.setattr(blocked, "_NUMPY_BLOCK", 1024)
    monkeypatch.setattr(blocked, "_TORCH_BLOCK", 1536)
    monkeypatch.setattr(blocked, "threads", lambda: 3)
    monkeypatch.setattr(blocked, "_numpy_block", lambda elements, workers: 1024)
    spec = spec_of(
        dtype,
        symmetric=symmetric,
        granularity=granularity,
        scale_dtype=scale_dtype,
    )
    before = np.getbufsize()
    with np.errstate(all="raise", under="ignore"):
        codes, params, second = round_blocked(make(weight), spec)
    assert np.getbufsize() == before
    low, high = ranges(weight, spec)
    expected, level = choose_params(low, high, spec, 0)
    assert (second is None) == (level is None) == (scale_dtype != "uint8")
    for key in level or {}:
        np.testing.assert_array_equal(np.asarray(second[key]), level[key])
    np.testing.assert_array_equal(np.asarray(params.scale), expected.scale)
    np.testing.assert_array_equal(np.asarray(params.zero_point), expected.zero_point)
    np.testing.assert_array_equal(np.asarray(codes), encode(weight, expected))
    assert np.asarray(codes).dtype == encode(weight, expected).dtype
    assert np.asarray(params.zero_point).dtype == np.int32
    assert params.axis == 0 and params.spec == spec
    bad = weight.copy()
    bad[7, 3] = np.nan
    with pytest.raises(NonFiniteWeight) as raised:
        round_blocked(make(bad), spec)
    assert str(raised.value) == NOT_FINITE


@pytest.mark.parametrize("size", [4, 8, 24, 255, 256, 1023, 1024, 1030])
@pytest.mark.parametrize("magnitude", [True, False])
def test_extremes_of_every_length(size: int, magnitude: bool) -> None:
    torch = pytest.importorskip("torch")
    block = np.random.default_rng(0).normal(size=(3, 2, size)).astype(np.float32)
    block[0, 0] = np.abs(block[0, 0])
    block[1, 1] = -np.abs(block[1, 1])
    low, high = block.min(2), block.max(2)
    for of, array in ((numpy_extremes, block), (extremes, torch.from_numpy(block))):
        buffer = array + 0
        given_low, given_high = of(array, buffer, magnitude=magnitude)
        found_low, found_high = np.asarray(given_low), np.asarray(given_high)
        if magnitude:
            np.testing.assert_array_equal(found_high, np.maximum(-low, high))
        else:
            # Of a group without a sign, the other's stands in: its range reaches to zero anyway.
            np.testing.assert_array_equal(np.minimum(found_low, 0), np.minimum(low, 0))
            np.testing.assert_array_equal(
                np.maximum(found_high, 0), np.maximum(high, 0)
            )
        assert found_high.dtype == np.float32 and found_high.shape == (3, 2)
        np.testing.assert_array_equal(np.asarray(array), block)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:4", "block:2x3"])
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_ranges_are_float32(granularity: str, dtype: Any) -> None:
    matrix = np.arange(-12, 18).reshape(5, 6).astype(dtype)
    low, high = ranges(matrix, spec_of("int8", granularity=granularity))
    assert low.dtype == high.dtype == np.float32
    assert low.shape == high.shape
    none, neither = ranges(matrix[:0], spec_of("int8", granularity="channel"))
    assert none.shape == (0,) and none.dtype == neither.dtype == np.float32
    for bad in (np.inf, -np.inf, np.nan):
        matrix[1, 1] = bad
        with pytest.raises(NonFiniteWeight) as raised:
            ranges(matrix, spec_of("int8", granularity=granularity))
        assert str(raised.value) == NOT_FINITE


def test_blocks_at_the_ends_are_short() -> None:
    matrix = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    low, high = ranges(matrix, spec_of("int8", granularity="block:2x3"))
    for i in range(3):
        for j in range(3):
            part = matrix[2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
            assert (low[i, j], high[i, j]) == (part.min(), part.max())


def test_tokens_have_scales_of_their_own() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    params = token_params(x, spec_of("int8", granularity="token"))
    np.testing.assert_allclose(
        params.scale, np.abs(x).max(2, keepdims=True) / 127, rtol=1e-6
    )
    assert params.scale.shape == (2, 3, 1) and params.axis is None


# Rounding up or down


@pytest.mark.parametrize("seed", [0, 5])
def test_stochastic_rounding_draws_by_seed_and_shape(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Zeros:
        def random(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            return np.zeros(shape, dtype)

    x = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32) * 4
    drawn = np.random.default_rng(seed).random((40, 3), dtype=np.float32)
    expected = np.floor(x) + (drawn < x - np.floor(x))
    found = stochastic(seed)(x)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    # Whole numbers stay.
    np.testing.assert_array_equal(stochastic(seed)(np.float32([2, -3])), [2, -3])
    # Of a draw of zero too.
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Zeros())
    np.testing.assert_array_equal(stochastic(seed)(np.float32([2, -3])), [2, -3])
    up = given(np.asarray([True, False, True]))(np.float32([1.2, 1.8, -0.5]))
    np.testing.assert_array_equal(up, [2, 1, 0])
    assert up.dtype == np.float32


# Packing


@pytest.mark.parametrize("order", ["low", "high"])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17])
def test_bits_lie_as_a_stream(bits: int, count: int, order: Any) -> None:
    """Written out bit by bit: the reference for every width and length."""
    random = np.random.default_rng(bits * count)
    codes = random.integers(0, 2**bits, size=(2, count))
    for row, packed in zip(codes, pack(codes, bits, order), strict=True):
        stream: list[int] = []
        for code in row:
            single = [(int(code) >> i) & 1 for i in range(bits)]
            stream += single if order == "low" else single[::-1]
        stream += [0] * (-len(stream) % 8)
        octets = [stream[i : i + 8] for i in range(0, len(stream), 8)]
        if order == "high":
            octets = [octet[::-1] for octet in octets]
        expected = [sum(bit << i for i, bit in enumerate(octet)) for octet in octets]
        assert packed.tolist() == expected and packed.dtype == np.uint8
    back = unpack(pack(codes, bits, order), bits, count, order=order)
    np.testing.assert_array_equal(back, codes)
    assert back.dtype == np.uint8
    signed = np.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)
    again = unpack(pack(signed, bits, order), bits, count, signed=True, order=order)
    np.testing.assert_array_equal(again, signed)
    assert again.dtype == np.int8


@pytest.mark.parametrize("bits", [1, 3, 4, 5, 8])
def test_streams_run_on_over_chunks(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.core.numerics import packing

    monkeypatch.setattr(packing, "_CHUNK", 16)
    codes = np.random.default_rng(0).integers(0, 2**bits, size=(3, 17)).astype(np.uint8)
    packed = pack_stream(codes, bits)
    np.testing.assert_array_equal(packed, pack(codes.reshape(-1), bits))
    np.testing.assert_array_equal(unpack_stream(packed, bits, 51), codes.reshape(-1))
    nothing = pack_stream(codes[:0], bits)
    assert nothing.shape == (0,) and nothing.dtype == np.uint8
    empty = unpack_stream(nothing, bits, 0)
    assert empty.shape == (0,) and empty.dtype == np.uint8
    assert unpack_stream(nothing, bits, 0, signed=True).dtype == np.int8


@pytest.mark.parametrize("bits", [0, 9])
def test_widths_beyond_a_byte_are_refused(bits: int) -> None:
    for tried in (lambda c: pack(c, bits), lambda c: unpack(c, bits, 1)):
        with pytest.raises(SchemeError) as raised:
            tried(np.zeros(1, np.uint8))
        assert str(raised.value) == (
            f"codes of {bits} bits cannot be packed into bytes; 1 to 8 can"
        )


@pytest.mark.parametrize("dtype", ["int2", "uint3", "int4", "uint6", "int8", "nf4"])
def test_compact_tensors_keep_all_that_they_stand_for(dtype: str) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    spec = spec_of(dtype, granularity="channel", symmetric=True)
    params, _ = choose_params(*ranges(weight, spec), spec, 0)
    plain = QuantizedTensor(encode(weight, params), params, {"kept": 1})
    packed = compact(plain)
    assert isinstance(packed, PackedTensor) == (dtype != "int8")
    assert packed.shape == (3, 5) and packed.extra == {"kept": 1}
    assert packed.codes.dtype == plain.codes.dtype
    np.testing.assert_array_equal(packed.codes, plain.codes)
    np.testing.assert_array_equal(packed.dequantize(), plain.dequantize())


# Layouts


def test_matrices_of_every_axis() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    for axis in (0, 1, 2, -1, -2):
        matrix = to_matrix(x, axis)
        expected = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
        np.testing.assert_array_equal(matrix, expected)
        np.testing.assert_array_equal(from_matrix(matrix, x.shape, axis), x)
    assert to_matrix(np.zeros((0, 3)), 1).shape == (3, 0)
    turned = np.arange(6).reshape(2, 3).T
    assert contiguous(turned).flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(contiguous(turned), turned)


def test_parameters_stretch_over_rows_and_columns() -> None:
    parameter = np.asarray([[1, 2], [3, 4]])
    expected = [[1, 1, 1, 2], [1, 1, 1, 2], [3, 3, 3, 4]]
    np.testing.assert_array_equal(stretch(parameter, (3, 4), 2, 3), expected)
    np.testing.assert_array_equal(
        stretch(parameter, (2, 3), 1, 2), [[1, 1, 2], [3, 3, 4]]
    )


# Rows


def conv(weight: tuple[int, ...], kind: str = "conv", **attributes: Any) -> Op:
    return Op("c", kind, ("x",), ("y",), Weight("w", weight), attributes=attributes)


def test_how_ops_read_their_input() -> None:
    assert rows_of(Op("l", "linear", ("x",), ("y",), Weight("w", (2, 3)))) == Rows()
    assert rows_of(Op("l", "linear", ("x",), ("y",))) is None
    assert rows_of(conv((2, 3), "embedding")) is None
    assert rows_of(conv((4, 2, 3, 5))) == Rows((3, 5), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    given_ones = conv(
        (4, 2, 3, 5), strides=2, pads=(1, 2, 3, 4), dilations=(2, 3), groups=2
    )
    assert rows_of(given_ones) == Rows((3, 5), (2, 2), (1, 2, 3, 4), (2, 3), 2)
    turned = conv(
        (2, 4, 3, 5), "conv_transpose", strides=(2, 3), pads=(1, 0, 1, 2), dilations=2
    )
    assert rows_of(turned) is None
    assert rounding_rows(turned) == Rows(
        (3, 5), (1, 1), (4 - 1, 8, 4 - 1, 8 - 2), (2, 2), 1, (2, 3)
    )
    assert rounding_rows(conv((4, 2, 3))) == rows_of(conv((4, 2, 3)))
    with pytest.raises(SchemeError) as raised:
        rows_of(conv((4, 2, 3, 5), strides=(1, 2, 3)))
    assert str(raised.value) == (
        "op 'c' states strides (1, 2, 3); a kernel of shape (4, 2, 3, 5) needs 2 numbers"
    )
    assert Rows().channel_axis == -1 and Rows((3,)).channel_axis == 1


@pytest.mark.parametrize("groups", [1, 2])
def test_patches_by_torchs_convolution(groups: int, monkeypatch: Any) -> None:
    torch = pytest.importorskip("torch")
    from octavo.core.numerics import rows as module

    random = np.random.default_rng(0)
    x = random.normal(size=(3, 4, 7, 6)).astype(np.float64)
    weight = random.normal(size=(6, 4 // groups, 3, 2))
    rows = Rows((3, 2), (2, 1), (1, 0, 1, 1), (1, 2), groups)
    monkeypatch.setattr(module, "_CHUNK", 4 * 7 * 6 * 6 * 2)
    parts = list(rows.chunks(x))
    # Two samples at a time.
    assert [p.shape[1] for p in parts] == [2 * parts[1].shape[1], parts[1].shape[1]]
    patches = np.concatenate(parts, axis=1)
    assert patches.dtype == np.float32
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 1)))
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(padded),
        torch.from_numpy(weight),
        stride=(2, 1),
        dilation=(1, 2),
        groups=groups,
    ).numpy()
    by_group = weight.reshape(groups, 6 // groups, -1)
    found = np.einsum("grf,gof->gor", patches, by_group).reshape(6, 3, -1)
    np.testing.assert_allclose(
        found.transpose(1, 0, 2).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(
        rows.features_of(np.arange(4)), np.repeat(np.arange(4), 6).reshape(groups, -1)
    )
    assert list(rows.chunks(x[:0])) == []


def test_linear_ops_read_the_last_axis() -> None:
    x = np.arange(30, dtype=np.float64).reshape(2, 3, 5)
    (rows,) = Rows().chunks(x)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, x.reshape(1, 6, 5))


def test_what_a_transposed_convolution_cuts() -> None:
    x = np.arange(24).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(_cropped(x, 3, 1, 2), x[..., 1:2])
    np.testing.assert_array_equal(_cropped(x, 2, 0, 1), x[:, :, :2])
    assert _cropped(x, 2, 0, 0) is x


# Rotations and channel maps


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_channel_maps_give_float32(dtype: Any) -> None:
    scale, shift = np.float32([2, 4]), np.float32([1, -1])
    weight, bias = np.asarray([[1, 2], [3, 4]], dtype), np.asarray([5, 6], dtype)
    change = ChannelMap(scale, shift)
    moved = change.reader_bias(weight, bias)
    for found, expected in (
        (change.apply(bias), [2, 1.75]),
        (change.reader(weight), [[2, 8], [6, 16]]),
        (moved, [4, 5]),
        (change.reader_bias(weight, None), [-1, -1]),
        (change.writer(weight, bias)[0], [[0.5, 1], [0.75, 1]]),
        (change.writer(weight, bias)[1], [2, 1.75]),
        (change.writer(weight, None)[1], [-0.5, 0.25]),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected)
    kernel = np.ones((4, 1, 2), dtype)
    by_group = ChannelMap(scale).grouped_reader(kernel, 2)
    assert by_group.dtype == np.float32
    np.testing.assert_array_equal(by_group[:, 0, 0], [2, 2, 4, 4])
    assert ChannelMap(scale).writer(weight, None)[1] is None


@pytest.mark.parametrize("dtype", ["float16", "mxint8", "nf4", "mxfp4", "int4"])
def test_numbers_are_float32(dtype: str) -> None:
    x = np.float64([-1, 0.25, 0.5, 1])
    spec = spec_of(dtype)
    params, _ = choose_params(np.float32(-1), np.float32(1), spec, None)
    back = decode(encode(x, params), params)
    assert back.dtype == np.float32 and params.scale.dtype == np.float32
    np.testing.assert_allclose(back, x, atol=0.1)
    np.testing.assert_array_equal(project(x, params), back)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 8, 12, 16, 20, 100])
@pytest.mark.parametrize("seed", [None, 3])
def test_rotations_are_orthogonal_and_agree(n: int, seed: int | None) -> None:
    like = np.zeros(0, np.float32)
    matrix = hadamard(n, like, seed)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-5)
    plain = hadamard(n, like)
    signs = np.ones(n)
    if seed is not None:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], n)
    np.testing.assert_allclose(matrix, plain * signs[:, None], atol=1e-6)
    power = n & -n
    if power == n:
        np.testing.assert_allclose(np.abs(plain), n**-0.5, rtol=1e-5)
        assert (plain[0] > 0).all()
    x = np.random.default_rng(1).normal(size=(2, 3, n))
    np.testing.assert_allclose(rotate(x, seed), x @ matrix, atol=1e-5)
    assert rotate(x, seed).dtype == np.float32
    around, left, right = hadamard_parts(n, like, seed)
    a = len(left)
    assert a * len(right) == n and a * a <= n and 4 * a * a > min(n, power * power)
    by_parts = left @ (x * around).reshape(2, 3, a, -1) @ right
    np.testing.assert_allclose(by_parts.reshape(x.shape), x @ matrix, atol=1e-5)


def test_cosines_are_dct_ii() -> None:
    from scipy.fft import dct

    expected = dct(np.eye(5), axis=0, norm="ortho")
    np.testing.assert_allclose(
        hadamard(5, np.zeros(0, np.float32)), expected, atol=1e-6
    )


def test_maps_that_do_not_fit_are_named() -> None:
    group = Group("g", "rescale", ("a",), "p", 2, "v", takes=frozenset({"scale"}))
    (found,) = channel_maps([group], {"g": np.float64([1, 2])})
    assert found[1].scale.dtype == np.float32 and found[1].shift is None
    for factors, message in (
        (
            np.ones(3),
            "group 'g' takes 2 finite positive factors, got shape (3,), smallest nan",
        ),
        (
            np.float32([1, 0]),
            "group 'g' takes 2 finite positive factors, got shape (2,), smallest 0",
        ),
        (
            np.float32([np.inf, 1]),
            "group 'g' takes 2 finite positive factors, got shape (2,), smallest nan",
        ),
        (
            ChannelMap(shift=np.ones(2), rotation=0),
            "group 'g' takes scale and no rotation, shift; leave it out there",
        ),
    ):
        with pytest.raises(SchemeError) as raised:
            list(channel_maps([group], {"g": factors}))
        assert str(raised.value) == message
    with pytest.raises(SchemeError, match=r"^there is no rescale group 'h'"):
        list(channel_maps([group], {"h": np.ones(2)}))
    assert as_map(found[1]) is found[1]
    assert chained([]) == ()


def test_known_names() -> None:
    for name in ("int4", "uint16", "nf4", "nvfp4", "mxint8", "mxfp4", "float16", "fp8"):
        assert known_dtype(name)
    for name in ("bf4", "mxfp5", "float32", "nf3", ""):
        assert not known_dtype(name)
    with pytest.raises(SchemeError) as raised:
        choose_params(np.float32(0), np.float32(1), spec_of("fp9"), None)
    assert str(raised.value).startswith(
        "unknown dtype 'fp9'; known are int2 to int16, uint2 to uint16, nf4, nvfp4, mxint8, fp8"
    )
