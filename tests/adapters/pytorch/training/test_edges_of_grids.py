"""Grids that are learned by their ends or scales alone, against formulas in NumPy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from octavo.adapters.pytorch.training.learned_linear import _fits
from octavo.adapters.pytorch.training.scaled_linear import (
    ScaledLinear,
    with_movable_scales,
)
from octavo.adapters.pytorch.training.signed_rounding import SignedLinear
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

SPECS = {
    "int4": QuantSpec(dtype="int4", granularity="channel"),
    "uint3": QuantSpec(dtype="uint3", symmetric=False, granularity="channel"),
    "int3": QuantSpec(dtype="int3", symmetric=False, granularity="group:3"),
}
ENDS = {"int4": (-8, 7), "uint3": (0, 7), "int3": (-4, 3)}


def start_of(name: str, repair: Any = None) -> tuple[torch.Tensor, QuantizedTensor]:
    """A weight, and codes of it that are not all the nearest; one beyond each end."""
    random = np.random.default_rng(0)
    low, high = ENDS[name]
    shape = (4, 2) if name == "int3" else (4,)
    scale = random.uniform(0.2, 0.5, shape).astype(np.float32)
    zero = np.zeros(shape) if name == "int4" else np.array([low, high, 0, 1])
    if name == "int3":
        zero = np.repeat(zero[:, None], 2, axis=1)
    wide = np.repeat(scale.reshape(4, -1), 3 if name == "int3" else 6, axis=1)
    zeros = np.repeat(zero.reshape(4, -1), 3 if name == "int3" else 6, axis=1)
    weight = random.normal(size=(4, 6)).astype(np.float32)
    weight[:, 1], weight[:, 4] = 9, -9
    codes = np.clip(np.round(weight / wide) + zeros, low, high)
    codes[:, 0] = np.where(codes[:, 0] < high, codes[:, 0] + 1, codes[:, 0] - 1)
    params = QuantParams(
        torch.from_numpy(scale), torch.from_numpy(zero).int(), SPECS[name], 0
    )
    kept = torch.from_numpy(codes).to(torch.int8 if low < 0 else torch.uint8)
    return torch.from_numpy(weight), QuantizedTensor(kept, params, None, repair)


def over(parameter: Any) -> np.ndarray:
    matrix = np.asarray(parameter, np.float64).reshape(4, -1)
    return np.repeat(matrix, 6 // matrix.shape[1], axis=1)


@pytest.mark.parametrize("name", list(SPECS))
def test_a_weight_is_moved_to_its_starts_codes(name: str) -> None:
    weight, start = start_of(name)
    layer = SignedLinear(weight, None, start, transposed=False)
    low, high = ENDS[name]
    scale, zero = over(start.params.scale), over(start.params.zero_point)
    ratio = weight.numpy() / scale
    centre = start.codes.numpy() - zero
    nearest = np.clip(np.round(ratio), low - zero, high - zero)
    near = centre + np.clip(ratio - centre, -0.49, 0.49)
    moved = np.where(nearest == centre, weight.numpy(), near * scale)
    assert (nearest != centre).any() and (np.abs(moved) == 9).any()
    np.testing.assert_allclose(layer.weight.detach().reshape(4, 6), moved, rtol=1e-5)
    # Each range may grow to its largest weight.
    ends = (scale * (low - zero), scale * (high - zero))
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(ends[0] < 0, weight.numpy() / ends[0], 0)
        above = np.where(ends[1] > 0, weight.numpy() / ends[1], 0)
    shape = start.params.scale.shape
    groups = np.maximum(below, above).reshape(*shape, -1).max(-1)
    expected = np.maximum(groups, 1)
    np.testing.assert_allclose(layer.largest_share, expected, rtol=1e-5)
    assert layer.low_share.requires_grad and layer.high_share.requires_grad
    assert not layer.offset.detach().any()


@pytest.mark.parametrize("name", list(SPECS))
def test_shares_of_a_range_make_its_grid(name: str) -> None:
    weight, start = start_of(name)
    layer = SignedLinear(weight, None, start, transposed=False)
    low, high = ENDS[name]
    random = np.random.default_rng(1)
    shares = random.uniform(0.6, 1.3, (2, *start.params.scale.shape))
    with torch.no_grad():
        layer.low_share.copy_(torch.from_numpy(shares[0]))
        layer.high_share.copy_(torch.from_numpy(shares[1]))
    scale, zero = layer.learned_grid()
    was = start.params.scale.numpy()
    if name == "int4":
        np.testing.assert_allclose(scale.detach(), was * shares[1], rtol=1e-5)
        assert not zero.any()
    else:
        point = start.params.zero_point.numpy()
        bottom = was * (low - point) * shares[0]
        top = was * (high - point) * shares[1]
        expected = (top - bottom) / (high - low)
        np.testing.assert_allclose(scale.detach(), expected, rtol=1e-5)
        whole = np.clip(np.round(low - bottom / expected), low, high)
        np.testing.assert_array_equal(zero.detach(), whole)
    with torch.no_grad():
        layer.low_share.zero_()
        layer.high_share.zero_()
    scale, zero = layer.learned_grid()
    assert (scale > 0).all() and (zero >= low).all() and (zero <= high).all()
    layer.learns_range = False
    assert layer.learned_grid() == (layer.start_scale, layer.start_zero)


def test_steps_end_at_the_largest_share() -> None:
    weight, start = start_of("uint3")
    layer = SignedLinear(weight, None, start, transposed=False)
    layer.largest_share = torch.tensor([1.0, 1.5, 2.0, 9.0])
    for parameter in (layer.offset, layer.high_share, layer.low_share):
        parameter.grad = -torch.ones_like(parameter)
    layer.low_share.grad = torch.ones(4)
    layer.step(0.7, 0.8)
    assert (layer.offset == 0.5).all() and layer.offset.grad is None
    assert layer.high_share.tolist() == pytest.approx([1, 1.5, 1.8, 1.8])
    assert (layer.low_share < 1).all() and (layer.low_share > 0).all()
    before = layer.high_share.detach().clone()
    layer.step(0.7, 0.8)
    assert torch.equal(layer.high_share, before)


@pytest.mark.parametrize("name", list(SPECS))
def test_scales_alone_move_codes_that_stay(name: str) -> None:
    matrix = torch.full((4, 6), 0.25)
    weight, start = start_of(name, SimpleNamespace(matrix=lambda: matrix))
    layer = ScaledLinear(weight, None, start, transposed=False)
    assert layer.steps == ENDS[name][1] - ENDS[name][0]
    values, offset = layer.rounded()
    steps = start.codes.numpy() - over(start.params.zero_point)
    on_grid = steps * over(start.params.scale)
    np.testing.assert_allclose(values.detach().reshape(4, 6), on_grid, rtol=1e-5)
    assert offset is None
    with torch.no_grad():
        layer.scale.mul_(1.5)
    found = layer.quantized_weight().detach().numpy()
    np.testing.assert_allclose(found, 1.5 * on_grid + 0.25, rtol=1e-5)
    weight, start = start_of(name)
    layer = ScaledLinear(weight, None, start, transposed=False)
    found = layer.quantized_weight().detach().numpy()
    np.testing.assert_allclose(found, on_grid, rtol=1e-5)


def test_what_can_be_learned() -> None:
    two = QuantSpec(dtype="int4", granularity="group:8", scale_dtype="uint8")
    powers = QuantSpec(dtype="int4", granularity="group:8", scale_dtype="e8m0")
    floats = QuantSpec(dtype="nf4", granularity="group:8")

    def layer(kind: str = "linear", norm: str = "", functional: bool = False) -> Any:
        op = SimpleNamespace(type=kind)
        return SimpleNamespace(op=op, norm=norm, functional=functional)

    def own(spec: Any, extra: Any = None, mode: str = "weight_only") -> Any:
        weight = SimpleNamespace(params=SimpleNamespace(spec=spec), extra=extra)
        return SimpleNamespace(
            weight=weight if spec else None, scheme=SimpleNamespace(mode=mode)
        )

    int4 = SPECS["int4"]
    assert _fits(layer(), own(int4)) and _fits(layer(), own(two, {"a": 1}))
    for unfit in (layer("conv"), layer(norm="bn"), layer(functional=True)):
        assert not _fits(unfit, own(int4))
    for given in (
        own(int4, mode="static"),
        own(None),
        own(floats),
        own(powers, {"a": 1}),
    ):
        assert not _fits(layer(), given)
    parameters = {"a": own(int4), "b": own(None), "c": own(powers)}
    assert list(with_movable_scales(parameters)) == ["a"]


def test_ranges_that_are_fixed_do_not_learn() -> None:
    spec = QuantSpec(dtype="int4", granularity="group:3", scale_dtype="e8m0")
    scale, zero = torch.full((4, 2), 0.5), torch.zeros(4, 2, dtype=torch.int32)
    codes = torch.zeros(4, 6, dtype=torch.int8)
    start = QuantizedTensor(codes, QuantParams(scale, zero, spec, 0))
    layer = SignedLinear(torch.ones(4, 6), None, start, transposed=False)
    assert not layer.low_share.requires_grad and not layer.high_share.requires_grad
    assert layer.offset.requires_grad
