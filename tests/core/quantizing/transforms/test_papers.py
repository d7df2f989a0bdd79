"""Each transform against its paper's formulas, written out in plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from octavo.core.quantizing.transforms.base import usable
from octavo.core.quantizing.transforms.suppression import thresholds
from tests.core.quantizing.transforms.linears import HOST, factors_of

ROWS, CHANNELS = 200, 32


def inputs(seed: int = 0) -> np.ndarray:
    """Channels of ranges from 0.1 to 60, some of them all negative at their loudest."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(ROWS, CHANNELS)) * np.geomspace(0.05, 20, CHANNELS)
    x[:, ::3] = -np.abs(x[:, ::3])
    return x.astype(np.float32)


def weights() -> list[np.ndarray]:
    """Two readers, each of which has the larger weights on its own half of the channels."""
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 24, CHANNELS))
    first[:, ::2] *= 8
    second[:, 1::2] *= 5
    return [first.astype(np.float32), second[:17].astype(np.float32)]


def largest_weights(matrices: Sequence[np.ndarray]) -> np.ndarray:
    return np.max([np.abs(w).max(0) for w in matrices], axis=0)


def int8_rows(w: np.ndarray) -> np.ndarray:
    """Symmetric int8, a scale for each output channel."""
    scale = np.abs(w).max(1, keepdims=True) / 127
    return np.round(w / scale) * scale


def int4_groups(w: np.ndarray, size: int = 32) -> np.ndarray:
    """Symmetric int4 of 15 levels, a scale for each group of inputs."""
    parts = w.reshape(len(w), -1, size)
    scale = np.abs(parts).max(2, keepdims=True) / 7
    return (np.round(parts / scale) * scale).reshape(w.shape)


def output_loss(x: np.ndarray, w: np.ndarray, rounded: np.ndarray) -> float:
    return float(
        (((rounded - w).astype(np.float64) @ x.T.astype(np.float64)) ** 2).sum()
    )


def int8_cost(
    x: np.ndarray,
    matrices: Sequence[np.ndarray],
    factors: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> float:
    """Rounding of weights at the outputs, and noise of the inputs' step, of variance s^2 / 12."""
    step = (max((high / factors).max(), 0) - min((low / factors).min(), 0)) / 255
    cost = 0.0
    for w in matrices:
        scaled = w * factors
        cost += output_loss(x, w, int8_rows(scaled) / factors)
        cost += len(x) * step**2 / 12 * float((scaled.astype(np.float64) ** 2).sum())
    return cost


def static_error(
    x: np.ndarray, matrices: Sequence[np.ndarray], factors: np.ndarray
) -> float:
    """What int8 static really costs at the outputs."""
    y = x / factors
    low, high = min(y.min(), 0), max(y.max(), 0)
    step = (high - low) / 255
    zero = np.round(-low / step)
    rounded = (np.clip(np.round(y / step) + zero, 0, 255) - zero) * step
    return sum(
        float(((rounded @ int8_rows(w * factors).T - x @ w.T) ** 2).sum())
        for w in matrices
    )


# SmoothQuant: Xiao et al. 2023


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_smoothquant_takes_the_maxima_of_all_members(alpha: float) -> None:
    """Eq. 4; layers that read one value share its factors, over the weights of all of them."""
    x, matrices = inputs(), weights()
    expected = np.abs(x).max(0) ** alpha / largest_weights(matrices) ** (1 - alpha)
    for order in (matrices, matrices[::-1]):
        found = factors_of("smoothquant", x, order, alpha=alpha)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    if alpha < 1:
        alone = np.abs(x).max(0) ** alpha / largest_weights(matrices[:1]) ** (1 - alpha)
        assert np.abs(np.log(alone / expected)).max() > 0.3


def test_smoothquant_searches_the_alpha_of_least_error() -> None:
    x, matrices = inputs(), weights()
    absmax, largest = np.abs(x).max(0), largest_weights(matrices)
    choices = [np.ones(CHANNELS)]
    choices += [absmax ** (i / 10) / largest ** (1 - i / 10) for i in range(11)]
    costs = [int8_cost(x, matrices, f, -absmax, absmax) for f in choices]
    found = factors_of("smoothquant", x, matrices, alpha="auto")
    np.testing.assert_allclose(found, choices[int(np.argmin(costs))], rtol=1e-5)
    # Neither end, and far from the worst; what is really computed agrees.
    assert 1 < int(np.argmin(costs)) < 11
    real = [static_error(x, matrices, f) for f in choices]
    assert static_error(x, matrices, found) < 1.1 * min(real)
    assert static_error(x, matrices, found) < 0.2 * max(real)


def test_smoothquant_leaves_alone_what_is_best_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from octavo.core.quantizing.transforms import smoothquant

    def far_from_ones(link: object, factors: np.ndarray, spec: object) -> float:
        return float(np.abs(factors - 1).sum())

    monkeypatch.setattr(smoothquant, "weight_error", far_from_ones)
    monkeypatch.setattr(smoothquant, "input_error", lambda *given: 0.0)
    found = factors_of("smoothquant", inputs(), weights(), alpha="auto")
    np.testing.assert_allclose(found, 1)


# AWQ: Lin et al. 2024


def awq_choices(x: np.ndarray, grid: int = 20) -> list[np.ndarray]:
    size = np.sqrt((x.astype(np.float64) ** 2).mean(0))
    found = []
    for i in range(grid + 1):
        raw = size ** (i / grid)
        found.append(raw / np.sqrt(raw.max() * raw.min()))
    return found


def awq_costs(
    x: np.ndarray, matrices: Sequence[np.ndarray], choices: Sequence[np.ndarray]
) -> list[float]:
    costs = []
    for f in choices:
        rounded = [int4_groups(w * f) / f for w in matrices]
        pairs = zip(matrices, rounded, strict=True)
        costs.append(sum(output_loss(x, w, q) for w, q in pairs))
    return costs


@pytest.mark.parametrize("grid", [20, 7])
def test_awq_searches_the_exponent_of_least_output_error(grid: int) -> None:
    """Eqs. 4 and 5: s = s_X**a, the a in [0, 1] of least || Q(W s) (X / s) - W X ||."""
    x, matrices = inputs(), weights()
    choices = awq_choices(x, grid)
    costs = awq_costs(x, matrices, choices)
    best = int(np.argmin(costs))
    found = factors_of("awq", x, matrices, grid=grid)
    np.testing.assert_allclose(found, choices[best], rtol=1e-4)
    assert 0 < best < grid
    assert costs[best] < 0.7 * costs[0]
    assert costs[best] < 0.5 * max(costs)


def test_awq_judges_by_all_members() -> None:
    x, (first, second) = inputs(), weights()
    loud = 30 * second
    together = factors_of("awq", x, [first, loud])
    costs = awq_costs(x, [first, loud], awq_choices(x))
    np.testing.assert_allclose(
        together, awq_choices(x)[int(np.argmin(costs))], rtol=1e-4
    )
    np.testing.assert_allclose(together, factors_of("awq", x, [loud, first]), rtol=1e-4)


# SPIQ: Yvinec et al. 2022


def test_spiq_gives_each_channel_its_own_scale() -> None:
    """Eqs. 4 to 6: W diag(s) is quantized, s the channels' largest values up to one factor."""
    x = inputs()
    x[:, 5] = 0
    scales = np.abs(x).max(0)
    alive = scales > 0
    expected = np.where(alive, scales, 1)
    expected = np.where(alive, expected / np.exp(np.log(expected[alive]).mean()), 1)
    found = factors_of("spiq", x, weights())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # All channels then fill the one range.
    filled = np.abs(x / found).max(0)[alive]
    np.testing.assert_allclose(filled, filled[0], rtol=1e-5)


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("deviations", [6.0, 2.0])
def test_spiq_takes_ranges_from_a_norm(deviations: float, rectified: bool) -> None:
    random = np.random.default_rng(0)
    gain, shift = random.normal(size=(2, CHANNELS)).astype(np.float32)
    shift[3] = -50
    group = {"gain": "g", "shift": "s", "rectified": rectified}
    found = factors_of(
        "spiq",
        inputs(),
        weights(),
        {"g": gain, "s": shift},
        group,
        source="norm",
        deviations=deviations,
    )
    low, high = shift - deviations * abs(gain), shift + deviations * abs(gain)
    if rectified:
        low, high = np.maximum(low, 0), np.maximum(high, 0)
    reach = np.maximum(abs(low), abs(high))
    alive = reach > 0
    assert alive.all() != rectified
    expected = np.where(alive, reach / np.exp(np.log(reach[alive]).mean()), 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert factors_of("spiq", inputs(), weights(), source="norm") is None


@pytest.mark.parametrize("offset", [False, True])
def test_gain_migration_takes_what_the_norm_multiplies_by(offset: bool) -> None:
    """Wei et al. 2022, eqs. 3 and 4; a gain of zero has no inverse."""
    stored = np.random.default_rng(0).normal(size=CHANNELS).astype(np.float32)
    stored[4] = -1 if offset else 0
    group = {"gain": "g", "offset": offset}
    found = factors_of("outlier_suppression", inputs(), weights(), {"g": stored}, group)
    expected = np.abs(1 + stored if offset else stored)
    expected[4] = 1
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert factors_of("outlier_suppression", inputs(), weights()) is None


# Outlier Suppression+: Wei et al. 2023


def far_inputs() -> np.ndarray:
    """Channels far from zero, and a few loud ones."""
    random = np.random.default_rng(2)
    x = random.normal(size=(ROWS, CHANNELS)) + np.linspace(-12, 12, CHANNELS)
    x[:, ::7] *= 3
    x[:, 3] *= 0.3
    return x.astype(np.float32)


@pytest.mark.parametrize("shifted", [True, False])
def test_outlier_suppression_plus_searches_shift_and_threshold(shifted: bool) -> None:
    """Eqs. 3 to 6: z the middle of a channel's range, s = max(1, max|X - z| / t)."""
    x, matrices = far_inputs(), weights()
    low, high = x.min(0), x.max(0)
    middle = (low + high) / 2
    best = (np.inf, np.ones(CHANNELS), np.zeros(CHANNELS))
    for z in (np.zeros(CHANNELS), middle)[: 1 + shifted]:
        absmax = np.maximum(abs(low - z), abs(high - z))
        for t in absmax.max() * (absmax.min() / absmax.max()) ** (np.arange(20) / 19):
            f = np.maximum(1, absmax / t)
            cost = int8_cost(x - z, matrices, f, low - z, high - z)
            best = min(best, (cost, f, z), key=lambda found: found[0])
    found = factors_of("outlier_suppression_plus", x, matrices, shift=shifted)
    np.testing.assert_allclose(found.scale, best[1], rtol=1e-4)
    if shifted:
        np.testing.assert_allclose(found.shift, middle, rtol=1e-5)
    else:
        assert found.shift is None
    error = static_error(x - best[2], matrices, best[1])
    assert error < (0.2 if shifted else 0.9) * static_error(x, matrices, np.ones(32))
    # A group that takes no shift is scaled alone.
    alone = factors_of(
        "outlier_suppression_plus", x, matrices, group={"takes": frozenset({"scale"})}
    )
    assert alone.shift is None


def test_thresholds_go_from_the_largest_range_to_the_smallest() -> None:
    absmax = np.asarray([8, 0, 1, 2], np.float32)
    np.testing.assert_allclose(thresholds(absmax, 4), [8, 4, 2, 1])
    assert thresholds(absmax, 1) == [8]
    assert thresholds(0 * absmax, 3) == [0]


# Equalization: Nagel et al. 2019


def test_equalization_lets_both_ranges_meet() -> None:
    """Eq. 11 on a chain of three layers: at the end r1 = r2 for every channel of every pair."""
    from octavo.core.quantizing.transforms.equalization import (
        Equalization,
        EqualizationConfig,
    )
    from octavo.core.values.graph import Group, ModelView, Op, Weight

    random = np.random.default_rng(0)
    held = {
        "a": random.normal(size=(6, 5)) * np.geomspace(0.01, 10, 6)[:, None],
        "b": random.normal(size=(4, 6)) * np.geomspace(1, 300, 4)[:, None],
        "c": random.normal(size=(4, 6)) * 3,
        "d": random.normal(size=(3, 4)) * np.geomspace(5, 0.1, 4),
    }
    held["b"][:, 2] = held["c"][:, 2] = 0
    held["a"][:, 1] = 7
    held["a"][5] = 0
    tensors = {name: w.astype(np.float32) for name, w in held.items()}
    reads = {"a": "x", "b": "u", "c": "u", "d": "v"}
    writes = {"a": "u", "b": "v", "c": "w", "d": "y"}
    ops = tuple(
        Op(n, "linear", (reads[n],), (writes[n],), Weight(n, tensors[n].shape))
        for n in tensors
    )
    view = ModelView(
        ops,
        (
            Group("u", "rescale", ("b", "c"), "a", 6, "u"),
            Group("v", "rescale", ("d",), "b", 4, "v"),
            Group("none", "rescale", ("d",), "", 4, "v"),
        ),
    )
    made = Equalization(EqualizationConfig(iterations=100))
    found = made.factors(view, tensors.__getitem__, None, view.by_name)  # type: ignore[arg-type]
    assert set(found) == {"u", "v"}
    u, v = np.asarray(found["u"]), np.asarray(found["v"])
    a = tensors["a"] / u[:, None]
    b = tensors["b"] * u / v[:, None]
    c, d = tensors["c"] * u, tensors["d"] * v
    outer, inner = abs(a).max(1), np.maximum(abs(b).max(0), abs(c).max(0))
    # A channel that is dead on one side stays as it is.
    assert u[2] == u[5] == 1
    alive = [0, 1, 3, 4]
    np.testing.assert_allclose(outer[alive], inner[alive], rtol=5e-3)
    np.testing.assert_allclose(abs(b).max(1), abs(d).max(0), rtol=5e-3)
    # After one pass the first pair alone has its paper's factors.
    once = Equalization(EqualizationConfig(iterations=1)).factors(
        view,
        tensors.__getitem__,
        None,  # type: ignore[arg-type]
        view.by_name,
    )
    largest = np.maximum(abs(tensors["b"]).max(0), abs(tensors["c"]).max(0))
    expected = np.sqrt(abs(tensors["a"]).max(1)[alive] / largest[alive])
    np.testing.assert_allclose(np.asarray(once["u"])[alive], expected, rtol=1e-5)


# The Hadamard rotation: Ashkboos et al. 2024


def test_the_rotation_is_sylvesters_matrix_with_random_signs() -> None:
    from octavo.core.numerics.hadamard import hadamard

    like = np.zeros(1, np.float32)
    sylvester = np.ones((1, 1))
    for _ in range(3):
        sylvester = np.kron(sylvester, [[1, 1], [1, -1]])
    plain = np.asarray(hadamard(8, like, None))
    np.testing.assert_allclose(plain, sylvester / np.sqrt(8), atol=1e-6)
    signs = np.sign(np.asarray(hadamard(8, like, 5)) / plain)
    assert set(np.unique(signs)) == {-1, 1}
    # A sign for each input channel.
    assert (signs == signs[:, :1]).all()


@pytest.mark.parametrize("online", [True, False])
def test_hadamard_rotates_what_takes_it(online: bool) -> None:
    for free in (True, False):
        group = {"online": frozenset() if free else frozenset({"rotation"})}
        found = factors_of(
            "hadamard", inputs(), weights(), group=group, seed=3, online=online
        )
        if free or online:
            assert found.rotation == 3
            assert found.scale is None and found.shift is None
        else:
            assert found is None
    takes_none = {"takes": frozenset({"scale", "shift"})}
    assert factors_of("hadamard", inputs(), weights(), group=takes_none) is None


def test_factors_are_finite_and_positive() -> None:
    given = np.asarray([np.nan, np.inf, -2, 0, 1e-9, 1e9, 3], np.float32)
    expected = np.asarray([1, 1, 1, 1, 1e-4, 1e4, 3], np.float32)
    np.testing.assert_allclose(usable(given), expected)


# What is asked of calibration, and AWQ without data


@pytest.mark.parametrize(
    ("kind", "options", "needs"),
    [
        ("smoothquant", {}, {"channel_range"}),
        ("smoothquant", {"alpha": "auto"}, {"channel_range", "gram"}),
        ("spiq", {}, {"channel_range"}),
        ("spiq", {"source": "norm"}, set()),
        ("awq", {}, {"gram"}),
        ("awq", {"source": "weights"}, set()),
        ("outlier_suppression", {}, set()),
        ("outlier_suppression_plus", {}, {"channel_range", "gram", "channel_mean"}),
        ("outlier_suppression_plus", {"shift": False}, {"channel_range", "gram"}),
        ("equalization", {}, set()),
    ],
)
def test_no_more_is_observed_than_is_needed(
    kind: str, options: dict[str, object], needs: set[str]
) -> None:
    part = HOST.part("transforms", kind)
    settings = part.config(kind=kind, **options)
    asked = settings.needs(part.needs) if hasattr(settings, "needs") else part.needs
    assert asked == needs


def test_awq_without_data_makes_channels_alike() -> None:
    """NNCF's: the inverse of a channel's mean absolute weight, over all rows that it meets."""
    matrices = weights()
    matrices[0][:, 3] = matrices[1][:, 3] = 0
    size = np.abs(np.concatenate(matrices)).mean(0)
    expected = np.where(size > 0, size.mean() / np.where(size > 0, size, 1), 1)
    found = factors_of("awq", inputs(), matrices, source="weights")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_awq_tries_exponents_from_none_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.core.quantizing.transforms import awq

    tried: list[float] = []

    def noted(size: np.ndarray, exponent: float) -> np.ndarray:
        tried.append(exponent)
        return np.ones_like(size)

    monkeypatch.setattr(awq, "importance", noted)
    factors_of("awq", inputs(), weights(), grid=4)
    assert tried == [0, 0.25, 0.5, 0.75, 1]


def test_a_reason_is_given_where_no_norm_is_known() -> None:
    from octavo.core.values.graph import Group

    bare = Group("g", "rescale", ("0",), "", 4, "v")
    known = Group("g", "rescale", ("0",), "", 4, "v", gain="gain")
    for kind, options in (
        ("outlier_suppression", {}),
        ("spiq", {"source": "norm"}),
        ("spiq", {}),
        ("smoothquant", {}),
    ):
        part = HOST.part("transforms", kind)
        made = part.build(part.config(kind=kind, **options))
        asks = kind == "outlier_suppression" or bool(options)
        assert ("folded before" in made.passes_over(bare)) == asks
        assert made.passes_over(known) == ""


# The objective: errors at the members' outputs


@pytest.mark.parametrize("groups", [1, 2])
def test_errors_of_convolutions_are_those_of_their_outputs(groups: int) -> None:
    """Against the convolution itself, patch by patch."""
    torch = pytest.importorskip("torch")
    from octavo.core.calibration.features import FEATURE_OBSERVERS
    from octavo.core.calibration.statistics import Statistics
    from octavo.core.contract.calibrator import Probe
    from octavo.core.numerics.rows import rows_of
    from octavo.core.quantizing.transforms.base import Link, channel_energy
    from octavo.core.quantizing.transforms.objective import input_error, weight_error
    from octavo.core.values.graph import Group, ModelView, Op, Weight
    from octavo.core.values.scheme import PartChoice, QuantSpec

    random = np.random.default_rng(0)
    x = random.normal(size=(5, 4, 6, 6)).astype(np.float32)
    x *= np.asarray([1, 30, 0.2, 5], np.float32)[:, None, None]
    w = random.normal(size=(6, 4 // groups, 3, 3)).astype(np.float32)
    attributes = {"strides": 2, "pads": 1, "groups": groups}
    op = Op("0", "conv", ("v",), ("y",), Weight("0", w.shape), attributes=attributes)
    group = Group("g", "rescale", ("0",), "", 4, "v")
    view = ModelView((op,), (group,))
    rows = rows_of(op)
    probe = Probe("v", PartChoice(kind="gram"), None, rows)
    seen = Statistics([probe], lambda p: FEATURE_OBSERVERS["gram"](p.rows))
    seen.update("v", x)
    link = Link(group, view, (op,), {"0": w}.__getitem__, seen)
    factors = np.asarray([0.5, 8, 0.1, 2], np.float32)

    def outputs(inputs: np.ndarray, weight: np.ndarray) -> np.ndarray:
        given = (
            torch.from_numpy(np.float32(inputs)),
            torch.from_numpy(np.float32(weight)),
        )
        made = torch.nn.functional.conv2d(*given, stride=2, padding=1, groups=groups)
        return np.asarray(made)

    own = np.repeat(factors.reshape(groups, -1), 6 // groups, 0)[:, :, None, None]
    scaled = (w * own).reshape(6, -1)
    rounded = int8_rows(scaled).reshape(w.shape) / own
    expected = ((outputs(x, rounded) - outputs(x, w)) ** 2).sum()
    found = weight_error(link, factors, QuantSpec(dtype="int8", granularity="channel"))
    assert found == pytest.approx(float(expected), rel=1e-2)
    # Noise of a step, of that variance, gives that much at the outputs.
    low, high = x.min((0, 2, 3)), x.max((0, 2, 3))
    spec = QuantSpec(dtype="uint8", symmetric=False)
    found = input_error(link, factors, spec, low, high)
    step = ((high / factors).max() - (low / factors).min()) / 255
    inner = x.shape[0] * 9 * step**2 / 12 * float((scaled**2).sum())
    assert found == pytest.approx(inner, rel=1e-3)
    # A channel's energy is its mean square under the kernel, padding included.
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))).astype(np.float64)
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    energy = (patches[:, :, ::2, ::2] ** 2).mean((0, 2, 3, 4, 5))
    np.testing.assert_allclose(channel_energy(link), energy, rtol=1e-4)
    parts = np.split(w, groups)
    largest = np.concatenate([abs(part).max((0, 2, 3)) for part in parts])
    np.testing.assert_allclose(link.weight_absmax(), largest)


def test_only_groups_that_carry_it_and_may_be_quantized_get_factors() -> None:
    from octavo.core.quantizing.transforms.base import links
    from octavo.core.values.graph import Group, ModelView, Op, Weight

    ops = tuple(
        Op(n, kind, ("v",), (f"y{n}",), Weight(n, (4, 4)))
        for n, kind in (("a", "linear"), ("b", "linear"), ("e", "embedding"))
    )
    groups = (
        Group("both", "rescale", ("a", "b"), "", 4, "v"),
        Group("tied", "scheme", ("a", "b")),
        Group("turned", "rescale", ("a",), "", 4, "v", takes=frozenset({"rotation"})),
        Group("looked up", "rescale", ("e",), "", 4, "v"),
        Group("kept", "rescale", ("b",), "", 4, "v"),
    )
    view = ModelView(ops, groups)
    free = {name: view.by_name[name] for name in ("a", "e")}
    found = list(links(view, dict, None, free))  # type: ignore[arg-type]
    assert [(link.group.name, len(link.members)) for link in found] == [("both", 1)]
    turned = links(view, dict, None, free, "rotation")  # type: ignore[arg-type]
    assert [link.group.name for link in turned] == ["turned"]
