"""The kernels' numbers against integer arithmetic and against the core's numerics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from octavo.adapters.pytorch.kernels import onednn, rounding
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.kernels.layouts import layouts
from octavo.adapters.pytorch.kernels.memo import Memo
from octavo.adapters.pytorch.kernels.posts import post
from octavo.adapters.pytorch.kernels.rounding import quantize_rows, quantize_u8
from octavo.adapters.pytorch.kernels.windows import Geometry
from octavo.adapters.pytorch.offers import capability
from octavo.adapters.pytorch.qlayers.int8 import Int8Linear
from octavo.adapters.pytorch.qlayers.packed_weights import StoredWeight
from octavo.adapters.pytorch.qlayers.weight_only import (
    WeightOnlyConv,
    WeightOnlyEmbedding,
    WeightOnlyLinear,
)
from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.plugins import PluginHost
from octavo.core.numerics.affine import affine_params, quantize
from octavo.core.numerics.tensor import PackedTensor, compact
from octavo.core.quantizing.algorithms.rtn import RoundToNearest
from octavo.core.values.scheme import QuantSpec

U8 = QuantSpec(dtype="uint8", symmetric=False)
S8 = QuantSpec(dtype="int8")


def rounded(matrix: torch.Tensor, spec: QuantSpec):
    settings = PluginHost(third_party=False).read("algorithms", "rtn")
    return RoundToNearest(settings).quantize(matrix, spec, WeightContext())


@given(
    st.floats(-100, 0), st.floats(0.01, 100), st.booleans(), st.integers(0, 2**32 - 1)
)
def test_quantize_u8_is_the_cores_quantization(
    low: float, high: float, symmetric: bool, seed: int
) -> None:
    x = torch.from_numpy(
        np.random.default_rng(seed)
        .uniform(1.5 * low, 1.5 * high, 257)
        .astype(np.float32)
    )
    params = affine_params(
        torch.tensor(low), torch.tensor(high), S8 if symmetric else U8
    )
    form = Activation.of(params)
    expected = quantize(x, params) + (128 if symmetric else 0)
    portable = rounding._rounded(
        x, form.scale, form.zero_point, form.low, form.high, None
    )
    for got in (form.quantize(x).int(), portable.int()):
        # x / scale and x * (1 / scale) may fall on two sides of a tie.
        assert int((got - expected).abs().max()) <= 1
        assert float((got != expected).float().mean()) < 0.02


@pytest.mark.parametrize("shape", [(3, 1000, 401), (401, 3001), (2**20 + 7,)])
def test_large_tensors_get_the_codes_of_their_rows(shape: tuple[int, ...]) -> None:
    x, factors = torch.randn(shape).clamp(-3, 2.5), torch.rand(shape[-1]) * 40 + 5
    codes = quantize_u8(x, 1.0, 100, 1, 250, factors)
    assert codes.shape == x.shape
    expected = (torch.round(x.double() * factors) + 100).clamp(1, 250)
    assert float((codes != expected).float().mean()) < 1e-4
    assert float((codes - expected).abs().max()) <= 1
    if x.ndim > 1:
        assert torch.equal(
            codes[-1], quantize_u8(x[-1].contiguous(), 1.0, 100, 1, 250, factors)
        )


@given(st.integers(0, 2**32 - 1))
def test_rows_are_quantized_on_their_own_range(seed: int) -> None:
    x = torch.from_numpy(
        np.random.default_rng(seed).standard_normal((5, 33)).astype(np.float32)
    )
    x[2] = 0
    codes, scale = quantize_rows(x)
    assert bool((codes[2] == 128).all())
    assert bool(torch.isfinite(scale).all())
    np.testing.assert_allclose(
        (codes.float() - 128) * scale, x, atol=float(scale.max()) * 0.5001
    )
    assert codes.min() >= 1


@pytest.mark.parametrize("then", ["", "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("spec", [QuantSpec(dtype="int8", granularity="channel"), S8])
def test_a_static_layer_is_exact_integer_arithmetic(spec: QuantSpec, then: str) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(48, 64), torch.randn(48), torch.randn(7, 64)
    stored = rounded(weight, spec)
    form = Activation.around(x, symmetric=False)
    y = Int8Linear(stored, bias, torch.float32, form, then=then)(x)
    sums = (form.quantize(x).long() - form.zero_point) @ stored.codes.long().T
    expected = post(
        then, (sums.double() * form.scale * stored.params.scale.double() + bias).float()
    )
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)


def test_few_rows_and_many_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    x, factors = torch.randn(300, 64), torch.rand(64) + 0.5
    # In reach of every CPU: whole bytes are computed in float32 where the kernels would saturate.
    stored = rounded(
        torch.randn(48, 64),
        QuantSpec(dtype="int8", granularity="channel", reduce_range=True),
    )
    form = Activation.around(x * factors, symmetric=False)
    layer = Int8Linear(
        stored, torch.randn(48), torch.float32, form, then="gelu", factors=factors
    )
    many = layer(x)
    assert {key[0] for key in layouts(layer.codes)} == {"linear"}
    torch.testing.assert_close(layer(x[:5]), many[:5], rtol=1e-4, atol=1e-4)
    assert {key[0] for key in layouts(layer.codes)} == {"linear", "rows"}


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"),
    [(1, 1, 1), (1, 2, 1), (1, 2, 3), (2, 3, 1), (1, 1, 8)],
)
@pytest.mark.parametrize("size", [(1, 1, 2), (1, 6, 6), (3, 2, 4)])
def test_padding_deeper_than_the_input_is_zeros(
    inputs: int, outputs: int, groups: int, size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (2, inputs * groups, *size), dtype=torch.uint8)
    codes, scale = (
        torch.randint(-63, 64, (outputs * groups, inputs, 2, 2, 5), dtype=torch.int8),
        torch.tensor([0.004]),
    )
    geometry: Geometry = ([1, 1, 1], [1, 1, 4], [1, 1, 1], groups)
    packed, zero = (
        onednn.pack_conv(codes, scale, 0.02, 77, geometry),
        torch.zeros(1, dtype=torch.int32),
    )
    y = onednn.conv_u8(x, 0.02, 77, packed, scale, zero, None, geometry)
    expected = F.conv3d(
        (x.double() - 77) * 0.02, codes.double() * 0.004, None, 1, [1, 1, 4], 1, groups
    )
    torch.testing.assert_close(
        y.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )


def test_two_layers_with_one_weight_keep_their_own_bias() -> None:
    torch.manual_seed(0)
    stored, x = (
        rounded(torch.randn(48, 64), QuantSpec(dtype="int8", granularity="channel")),
        torch.randn(2, 64),
    )
    bias = torch.randn(48)
    one, other = (Int8Linear(stored, b, torch.float32, None) for b in (None, bias))
    torch.testing.assert_close(one(x) + bias, other(x))


@pytest.mark.parametrize("rows", [3, 200])
@pytest.mark.parametrize(
    ("symmetric", "per_token"), [(False, False), (True, False), (True, True)]
)
def test_dynamic_layers_are_near_their_float_layer(
    rows: int, symmetric: bool, per_token: bool
) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 48), torch.randn(2, rows, 64)
    stored = rounded(
        layer.weight.detach(), QuantSpec(dtype="int8", granularity="channel")
    )
    made = Int8Linear(
        stored,
        layer.bias,
        torch.float32,
        None,
        symmetric=symmetric,
        per_token=per_token,
    )
    expected = layer(x).detach()
    assert float((made(x) - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_a_memo_forgets_a_tensor_that_was_changed_in_place() -> None:
    memo, x = Memo(3), torch.ones(2)
    assert memo.get(x, lambda t: t.sum().item()) == 2
    assert memo.get(x, lambda t: -1.0) == 2
    x.add_(1)
    assert memo.get(x, lambda t: t.sum().item()) == 4


STORED = [
    o.scheme.weight
    for o in capability("cpu").offers["linear"]
    if o.scheme.mode == "weight_only"
]


@pytest.mark.parametrize("spec", STORED, ids=str)
def test_stored_weights_are_what_their_codes_stand_for(spec: QuantSpec) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(64, 256), torch.randn(5, 256)
    stored = rounded(weight, spec)
    whole = stored.dequantize()
    layer = WeightOnlyLinear(stored, None, torch.float32)
    # The 4-bit kernel multiplies in bfloat16.
    tolerance = 0.02 if layer._on_kernel else 1e-4
    assert float((layer(x) - x @ whole.T).abs().max()) <= tolerance * float(
        (x @ whole.T).abs().max()
    )
    ids = torch.tensor([[3, 63], [0, 3]])
    torch.testing.assert_close(
        WeightOnlyEmbedding(stored, torch.float32)(ids),
        whole[ids],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("spec", STORED, ids=str)
@pytest.mark.parametrize(("dims", "groups"), [(1, 1), (2, 4), (3, 1)])
def test_stored_convolutions_are_what_their_codes_stand_for(
    dims: int, groups: int, spec: QuantSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several blocks.
    monkeypatch.setattr("octavo.adapters.pytorch.qlayers.packed_weights._BLOCK", 2048)
    torch.manual_seed(0)
    weight, bias, x = (
        torch.randn(16, 128, *(2,) * dims),
        torch.randn(16),
        torch.randn(2, 128 * groups, *(5,) * dims),
    )
    stored = rounded(weight.flatten(1), spec)
    whole = stored.dequantize().view(weight.shape)
    one = (1,) * dims
    folded = dataclasses.replace(stored, codes=stored.codes.view(weight.shape))
    layer = WeightOnlyConv(
        folded, bias, torch.float32, geometry=(one, one, one, groups), then="relu"
    )
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    expected = convolve(x, whole, bias, 1, 1, 1, groups)
    torch.testing.assert_close(
        layer(x, expected), torch.relu(2 * expected), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("features", [8, 12, 13, 64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "dtype", ["int2", "uint3", "int3", "int4", "int5", "mxfp6", "int6", "uint8"]
)
def test_rows_of_any_length_come_back_from_their_bits(
    dtype: str, transposed: bool, features: int
) -> None:
    torch.manual_seed(0)
    spec = QuantSpec(
        dtype=dtype,
        granularity="group:32" if dtype == "mxfp6" else "channel",
        symmetric=not dtype.startswith("u"),
    )
    made = rounded(torch.randn(10, 32 if dtype == "mxfp6" else features), spec)
    codes = made.codes.t().contiguous() if transposed else made.codes
    stored = StoredWeight(dataclasses.replace(made, codes=codes), transposed=transposed)
    whole, rows = made.dequantize(), torch.tensor([7, 0, 7])
    torch.testing.assert_close(
        stored.decode(stored.codes, slice(0, 10)), whole, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        stored.decode(stored.codes[rows], rows), whole[rows], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("int2", 2), ("int3", 3), ("uint3", 3), ("int4", 4), ("mxfp6", 6), ("int8", 8)],
)
def test_codes_take_their_bits_in_memory(dtype: str, bits: int) -> None:
    spec = QuantSpec(
        dtype=dtype, granularity="group:32", symmetric=not dtype.startswith("u")
    )
    made = rounded(torch.randn(16, 96), spec)
    assert StoredWeight(made).codes.nbytes == 16 * 96 * bits // 8
    assert compact(made).nbytes == made.nbytes
    held = compact(made)
    assert (
        held.packed if isinstance(held, PackedTensor) else held.codes
    ).nbytes == 16 * 96 * bits // 8
    assert torch.equal(held.codes, made.codes)


def test_the_gradient_of_a_stored_weight_is_that_of_its_numbers() -> None:
    torch.manual_seed(0)
    stored = rounded(
        torch.randn(64, 128), QuantSpec(dtype="nf4", granularity="group:64")
    )
    x, other = (
        torch.linspace(-1, 1, 3 * 128).view(3, 128).requires_grad_() for _ in range(2)
    )
    WeightOnlyLinear(stored, None, torch.float32)(x).square().sum().backward()
    (other @ stored.dequantize().T).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_an_embedding_bag_sums_the_rows_of_its_bags() -> None:
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(20, 32, mode="sum", padding_idx=0)
    stored = rounded(
        bag.weight.detach(), QuantSpec(dtype="int8", granularity="channel")
    )
    ids, offsets = torch.tensor([1, 0, 5, 5, 7]), torch.tensor([0, 3])
    expected = nn.functional.embedding_bag(
        ids, stored.dequantize(), offsets, mode="sum", padding_idx=0
    )
    torch.testing.assert_close(
        WeightOnlyEmbedding(stored, torch.float32, bag)(ids, offsets),
        expected,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("dtype", ["int4", "uint4", "uint2", "nf4"])
def test_candidates_share_the_packed_codes_of_a_weight(dtype: str) -> None:
    torch.manual_seed(0)
    plain = rounded(
        torch.randn(64, 96),
        QuantSpec(
            dtype=dtype, granularity="group:32", symmetric=not dtype.startswith("u")
        ),
    )
    packed = compact(plain)
    assert isinstance(packed, PackedTensor)
    one, other = StoredWeight(packed), StoredWeight(plain)
    assert one.codes.data_ptr() == packed.packed.data_ptr()
    assert torch.equal(one.codes, other.codes)
    torch.testing.assert_close(
        one.decode(one.codes, slice(0, 64)), plain.dequantize(), rtol=1e-5, atol=1e-5
    )
