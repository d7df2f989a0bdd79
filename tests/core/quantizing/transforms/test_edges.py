"""What rescalings do at their edges: dead channels, ends of searches, other dtypes, guards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.numerics.channels import ChannelMap
from octavo.core.quantizing.transforms.awq import AwqScaleConfig, inverse_size
from octavo.core.quantizing.transforms.base import (
    Link,
    by_input_channel,
    by_output_channel,
    channel_energy,
    links,
)
from octavo.core.quantizing.transforms.equalization import _Ranges
from octavo.core.quantizing.transforms.norms import gain_and_shift
from octavo.core.quantizing.transforms.objective import input_error, weight_error
from octavo.core.quantizing.transforms.smoothquant import SmoothQuantConfig, smoothing
from octavo.core.quantizing.transforms.spiq import SpiqConfig, conversion_scales
from octavo.core.quantizing.transforms.suppression import (
    OutlierSuppressionPlus,
    OutlierSuppressionPlusConfig,
    threshold_factors,
    thresholds,
)
from octavo.core.values.graph import Group, ModelView, Op, Weight
from octavo.core.values.scheme import QuantSpec
from tests.core.quantizing.transforms.linears import factors_of, view_of

NEEDS = frozenset({"gram", "channel_range", "channel_mean"})
INT8 = QuantSpec(dtype="int8", granularity="channel")


def link_of(weights: list[np.ndarray], **tensors: np.ndarray) -> Link:
    """A link whose statistics nothing may ask."""
    named = {name: name for name in tensors}
    view = view_of(weights, **named)
    held = {str(i): w for i, w in enumerate(weights)} | tensors
    statistics: Any = None
    return Link(view.groups[0], view, view.ops, held.__getitem__, statistics)


def test_configurations_need_what_they_use() -> None:
    assert AwqScaleConfig().needs(NEEDS) == NEEDS
    assert AwqScaleConfig(source="weights").needs(NEEDS) == NEEDS - {"gram"}
    assert SmoothQuantConfig(alpha="auto").needs(NEEDS) == NEEDS
    assert SmoothQuantConfig().needs(NEEDS) == NEEDS - {"gram"}
    assert SpiqConfig().needs(NEEDS) == NEEDS
    assert SpiqConfig(source="norm").needs(NEEDS) == frozenset()
    plus = OutlierSuppressionPlusConfig
    assert plus().needs(NEEDS) == NEEDS
    assert plus(shift=False).needs(NEEDS) == NEEDS - {"channel_mean"}


def test_channels_without_weights_get_one() -> None:
    first = np.float32([[1, -3, 0, 4], [1, 1, 0, 0]])
    second = np.float32([[-2, 0, 0, 0]])
    with np.errstate(all="raise"):
        found = inverse_size(link_of([first, second]))
    # Sums 4, 4, 0, 4 over three rows: their mean is 3.
    np.testing.assert_allclose(found, [0.75, 0.75, 1, 0.75])


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [1, 1, 0.5]), (1.0, [1, 1, 3])])
def test_smoothing_leaves_dead_channels_alone(
    alpha: float, expected: list[float]
) -> None:
    inputs, weights = np.float32([0, 5, 3]), np.float32([4, 0, 2])
    with np.errstate(divide="ignore"):
        found = smoothing(inputs, weights, alpha)
    np.testing.assert_allclose(found, expected)


def test_spiqs_factors_of_few_channels() -> None:
    # One alive: it is its own geometric mean.
    found = conversion_scales(np.float32([0, 8, 0]))
    np.testing.assert_allclose(found, [1, 1, 1])
    found = conversion_scales(np.float32([2, 8, 0]))
    np.testing.assert_allclose(found, [0.5, 2, 1], rtol=1e-6)


def test_thresholds_of_small_and_of_no_ranges() -> None:
    found = thresholds(np.float32([0.5, 0.125, 0]), 3)
    np.testing.assert_allclose(found, [0.5, 0.25, 0.125])
    assert thresholds(np.zeros(3, np.float32), 5) == [0]
    assert thresholds(np.float32([4, 1]), 1) == [4]
    with np.errstate(all="raise"):
        found = threshold_factors(np.zeros(2, np.float32), 0)
    np.testing.assert_array_equal(found, np.ones(2, np.float32))
    assert found.dtype == np.float32
    found = threshold_factors(np.float32([2, 0.25]), 0.5)
    np.testing.assert_allclose(found, [4, 1])


def test_equalization_tells_how_far_factors_moved() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 4, 4)).astype(np.float32)
    first *= np.float32([[1], [9], [1], [1]])
    ops = (
        Op("a", "linear", ("x",), ("y",), Weight("a", first.shape)),
        Op("b", "linear", ("y",), ("z",), Weight("b", second.shape)),
    )
    group = Group("a -> b", "rescale", ("b",), "a", 4, "y")
    view = ModelView(ops, (group,))
    held = {"a": first, "b": second}
    statistics: Any = None
    link = Link(group, view, ops[1:], held.__getitem__, statistics)
    ranges = _Ranges(view)
    ranges.add(link, ops[0])
    expected = np.sqrt(np.abs(first).max(1) / np.abs(second).max(0))
    assert ranges.equalize_all() == pytest.approx(np.abs(expected - 1).max(), rel=1e-5)
    np.testing.assert_allclose(ranges.factors["a -> b"], expected, rtol=1e-5)
    assert ranges.equalize_all() == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(ranges.factors["a -> b"], expected, rtol=1e-5)
    # Channels that are dead on a side keep their factor of one.
    first[1], second[:, 2] = 0, 0
    dead = _Ranges(view)
    dead.add(link, ops[0])
    with np.errstate(all="raise"):
        dead.equalize_all()
    np.testing.assert_array_equal(dead.factors["a -> b"][1:3], 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_parameters_of_every_dtype_are_met_as_float32(dtype: Any) -> None:
    matrix = np.arange(6).reshape(2, 3).astype(dtype)
    gain, shift = np.ones(3, dtype), np.full(3, 2, dtype)
    link = link_of([matrix], gain=gain, shift=shift)
    by_input = by_input_channel(link.members[0], link.tensor)
    by_output = by_output_channel(link.members[0], link.tensor)
    known = gain_and_shift(link)
    assert known is not None
    for found in (by_input, by_output, *known):
        assert found.dtype == np.float32
    np.testing.assert_array_equal(by_input, matrix.T)
    np.testing.assert_array_equal(by_output, matrix)
    np.testing.assert_array_equal(known, [[1, 1, 1], [2, 2, 2]])


@pytest.mark.parametrize("groups", [1, 2])
def test_kernels_by_input_channel(groups: int) -> None:
    torch = pytest.importorskip("torch")
    kernel = torch.arange(24.0).reshape(4, 2, 3)
    op = Op(
        "c",
        "conv",
        ("x",),
        ("y",),
        Weight("w", (4, 2, 3)),
        attributes={"groups": groups},
    )
    found = by_input_channel(op, {"w": kernel}.__getitem__)
    parts = kernel.numpy().reshape(groups, 4 // groups, 2, 3)
    expected = parts.transpose(0, 2, 1, 3).reshape(2 * groups, -1)
    np.testing.assert_array_equal(found.numpy(), expected)
    table = Op("e", "embedding", ("x",), ("y",), Weight("w", (4, 6)))
    matrix = kernel.reshape(4, 6)
    turned = by_input_channel(table, {"w": matrix}.__getitem__)
    assert torch.equal(turned, matrix.T)


def test_a_gain_without_a_shift_has_shifts_of_zero() -> None:
    known = gain_and_shift(link_of([np.ones((2, 3), np.float32)], gain=np.ones(3)))
    assert known is not None
    np.testing.assert_array_equal(known[1], np.zeros(3))
    assert known[1].shape == (3,) and known[1].dtype == np.float32


def test_errors_take_one_matrix_of_each_member() -> None:
    link = link_of([np.ones((2, 3), np.float32)] * 2)
    gram = np.eye(3, dtype=np.float32)[None]
    ones = np.ones(3, np.float32)
    assert weight_error(link, ones, INT8, [gram, gram]) == pytest.approx(0, abs=1e-8)
    for wrong in ([gram], [gram] * 3):
        with pytest.raises(ValueError, match="zip"):
            weight_error(link, ones, INT8, wrong)


def test_input_error_of_one_member_by_hand() -> None:
    class Seen:
        count = 10

    matrix = np.float32([[1, 2], [0, 3]])
    link: Any = link_of([matrix])
    object.__setattr__(link, "observed", lambda need, op: Seen())
    factors = np.float32([1, 0.5])
    spec = QuantSpec(dtype="uint8", symmetric=False)
    found = input_error(link, factors, spec, np.float32([-1, -1]), np.float32([3, 1]))
    # Divided, values lie in [-2, 3]; the scaled weights' squares add up to 1 + 1 + 2.25.
    assert found == pytest.approx(10 * (5 / 255) ** 2 / 12 * 4.25, rel=1e-5)


def test_smoothquant_searches_from_zero_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.core.quantizing.transforms import smoothquant

    x, w = np.float32([[1, -16], [0.5, 3]]), np.float32([[2, 2], [-4, 0.5]])
    monkeypatch.setattr(smoothquant, "input_error", lambda *given: 0.0)
    for sign, alpha in ((1, 0.0), (-1, 1.0)):

        def by_last(link: Any, factors: Any, spec: Any, sign: int = sign) -> float:
            return sign * float(factors[1])

        monkeypatch.setattr(smoothquant, "weight_error", by_last)
        found = factors_of("smoothquant", x, [w], alpha="auto")
        expected = np.float32([1, 16]) ** alpha / np.float32([4, 2]) ** (1 - alpha)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def seen_link(x: np.ndarray, weights: list[np.ndarray]) -> Link:
    """A link over what calibration saw."""
    from octavo.core.calibration.statistics import Statistics
    from octavo.core.contract.calibrator import Probe
    from octavo.core.numerics.rows import Rows
    from octavo.core.values.scheme import MINMAX, PartChoice
    from tests.core.quantizing.transforms.linears import _observer

    view = view_of(weights)
    names = ("gram", "channel_range", "channel_mean")
    probes = [Probe("value", PartChoice(kind=n), None, Rows()) for n in names]
    statistics = Statistics([*probes, Probe("value", MINMAX, -1)], _observer)
    statistics.update("value", x)
    held = {str(i): w for i, w in enumerate(weights)}
    (link,) = links(view, held.__getitem__, statistics, view.by_name)
    assert link.view is view
    return link


def test_energies_of_one_row_are_its_squares() -> None:
    x = np.float32([[1, -3, 0.5]])
    link = seen_link(x, [np.ones((2, 3), np.float32)])
    np.testing.assert_allclose(channel_energy(link), x[0] ** 2, rtol=1e-6)


def test_costs_of_outlier_suppression_plus_are_of_centred_inputs() -> None:
    """Each threshold's cost by hand: rounding of weights on the centred inputs, and of inputs."""
    from tests.core.quantizing.transforms.test_papers import int8_cost

    random = np.random.default_rng(0)
    scale = np.geomspace(0.5, 8, 8)
    x = (scale * (random.normal(size=(60, 8)) + 3)).astype(np.float32)
    w = random.normal(size=(6, 8)).astype(np.float32)
    link = seen_link(x, [w])
    low, high = x.min(0), x.max(0)
    made = OutlierSuppressionPlus(OutlierSuppressionPlusConfig(grid=4))
    for shift in (None, (low + high) / 2):
        moved = x if shift is None else x - shift
        np.testing.assert_allclose(
            link.grams(shift)[0][0], moved.T @ moved, rtol=1e-3, atol=1e-2
        )
        tried = list(made._tried(link, low, high, shift))
        assert len(tried) == 4
        for cost, change in tried:
            factors = np.asarray(change.scale)
            expected = int8_cost(moved, [w], factors, moved.min(0), moved.max(0))
            assert cost == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("options", [{"symmetric": False}, {"granularity": "tensor"}])
def test_awq_searches_for_the_grid_that_is_set(options: dict[str, Any]) -> None:
    """Of exponents 0, 1/4 to 1 the one of least output error, on another grid than the default."""
    random = np.random.default_rng(4)
    x = (random.normal(size=(64, 32)) * np.geomspace(0.05, 20, 32)).astype(np.float32)
    w = (random.normal(size=(8, 32)) + 1.5).astype(np.float32)
    found = factors_of("awq", x, [w], grid=4, **options)
    size = np.sqrt((x.astype(np.float64) ** 2).mean(0))
    choices = []
    for i in range(5):
        raw = size ** (i / 4)
        choices.append(raw / np.sqrt(raw.max() * raw.min()))
    costs = [awq_cost(x, w, f, **options) for f in choices]
    usual = [awq_cost(x, w, f) for f in choices]
    assert np.argmin(costs) != np.argmin(usual)
    np.testing.assert_allclose(found, choices[int(np.argmin(costs))], rtol=1e-4)


def awq_cost(
    x: np.ndarray,
    w: np.ndarray,
    factors: np.ndarray,
    symmetric: bool = True,
    granularity: str = "group:32",
) -> float:
    scaled = w.astype(np.float64) * factors
    whole = granularity == "tensor"
    axis = None if whole else 1
    if symmetric:
        step = np.abs(scaled).max(axis=axis, keepdims=True) / 7
        rounded = np.clip(np.round(scaled / step), -8, 7) * step
    else:
        low = np.minimum(scaled.min(axis=axis, keepdims=True), 0)
        high = np.maximum(scaled.max(axis=axis, keepdims=True), 0)
        step = (high - low) / 15
        zero = np.round(-8 - low / step)
        rounded = (np.clip(np.round(scaled / step) + zero, -8, 7) - zero) * step
    error = (rounded / factors - w) @ x.astype(np.float64).T
    return float((error**2).sum())


def test_outlier_suppression_plus_shifts_only_where_shifts_are_taken() -> None:
    """Channels that lie far from zero: the best map centres them, if it may."""
    random = np.random.default_rng(0)
    middle = np.linspace(-9, 9, 8)
    x = (random.normal(size=(100, 8)) + middle).astype(np.float32)
    w = random.normal(size=(6, 8)).astype(np.float32)
    both = frozenset({"scale", "shift"})
    shifted = factors_of("outlier_suppression_plus", x, [w], group={"takes": both})
    assert isinstance(shifted, ChannelMap)
    expected = (x.min(0) + x.max(0)) / 2
    np.testing.assert_allclose(shifted.shift, expected, rtol=1e-5)
    scale_only = {"takes": frozenset({"scale"})}
    plain = factors_of("outlier_suppression_plus", x, [w], group=scale_only)
    assert plain is None or plain.shift is None
    off = factors_of("outlier_suppression_plus", x, [w], shift=False)
    assert off.shift is None
    # Centred, channels are alike and nothing is scaled.
    centred = np.maximum(np.abs(x - expected).max(0) / np.abs(x - expected).max(), 0)
    assert centred.min() > 0.3
    assert np.log(np.asarray(shifted.scale)).max() < 1.2
