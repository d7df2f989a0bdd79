"""Token-wise clipping (Wei et al. 2022, section 4.2): the coarse search and the fine stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.calibration.calibrators.tokens import (
    OutputLoss,
    TokenConfig,
    TokenQuantile,
    TokenSample,
    reach,
)
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec

UINT8 = QuantSpec(dtype="uint8", symmetric=False)
INT8 = QuantSpec(dtype="int8")
UINT4 = QuantSpec(dtype="uint4", symmetric=False)
INT6 = QuantSpec(dtype="int6")


def tokens(outliers: int = 6) -> np.ndarray:
    """Two hundred tokens, of which a few are loud in their first four channels."""
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 32)).astype(np.float32)
    x[:outliers, :4] *= np.linspace(20, 40, outliers)[:, None]
    return x


def weight(*, hears_outliers: bool) -> np.ndarray:
    matrix = np.random.default_rng(1).normal(size=(24, 32)).astype(np.float32)
    if not hears_outliers:
        matrix[:, :4] = 0
    return matrix


def calibrated(x: np.ndarray, **options: Any) -> TokenQuantile:
    made = TokenQuantile(TokenConfig(**options))
    for part in np.array_split(x, 3):
        made.update(part)
    return made


def loss_of(
    x: np.ndarray, w: np.ndarray, low: float, high: float, codes: int = 255
) -> float:
    """Eq. 6 of the paper for one linear op: || Q(X) W^T - X W^T ||^2, plain uint8."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / codes
    zero = np.round(-low / scale)
    rounded = (np.clip(np.round(x / scale) + zero, 0, codes) - zero) * scale
    return float((((rounded - x).astype(np.float64) @ w.T) ** 2).sum())


def quantile_ends(x: np.ndarray, alpha: float) -> tuple[float, float]:
    """Eq. 7: quantiles of the tokens' own extremes."""
    high = np.quantile(x.max(1), alpha, method="inverted_cdf")
    low = np.quantile(x.min(1), 1 - alpha, method="inverted_cdf")
    return float(low), float(high)


@pytest.mark.parametrize("hears_outliers", [True, False])
def test_the_coarse_search_takes_the_quantile_of_least_output_loss(
    hears_outliers: bool,
) -> None:
    x, w = tokens(), weight(hears_outliers=hears_outliers)
    made = calibrated(x, iterations=0)
    low, high = (float(end) for end in made.range_for(UINT8, lambda: [w]))
    losses = {
        alpha: loss_of(x, w, *quantile_ends(x, alpha))
        for alpha in 1 - 0.01 * np.arange(10)
    }
    best, worst = min(losses.values()), max(losses.values())
    # The histogram knows a quantile to one of its bins.
    assert loss_of(x, w, low, high) <= 1.1 * best
    assert loss_of(x, w, low, high) < 0.7 * worst
    alphas = sorted(losses, key=lambda alpha: losses[alpha])
    # What the readers do not hear is clipped, what they hear is kept.
    assert (alphas[0] > 0.98) == hears_outliers
    assert (high > 40) == hears_outliers


def test_every_reader_counts() -> None:
    x = tokens()
    deaf, hearing = weight(hears_outliers=False), weight(hears_outliers=True)
    made = calibrated(x, iterations=0)
    both = float(made.range_for(UINT8, lambda: [deaf, hearing])[1])
    assert both == float(made.range_for(UINT8, lambda: [hearing])[1])
    assert both > 40 > float(made.range_for(UINT8, lambda: [deaf])[1])
    # Without one the value's own error decides.
    assert float(made.range(UINT8)[1]) == float(
        made.range_for(UINT8, lambda: [np.eye(32, dtype=np.float32)])[1]
    )


@pytest.mark.parametrize("spec", [UINT8, INT8, UINT4], ids=str)
def test_the_fine_stage_goes_on_from_there(spec: QuantSpec) -> None:
    x, w = tokens(), weight(hears_outliers=False)
    loss = OutputLoss(x, [w], spec)

    def found(iterations: int) -> float:
        made = calibrated(x, iterations=iterations)
        low, high = made.range_for(spec, lambda: [w])
        return loss((float(low), float(high)))

    coarse, fine = found(0), found(50)
    # At 4 bits ninety quantiles are tried already.
    assert fine < (1.0 if spec.bits == 4 else 0.97) * coarse
    assert fine <= found(5) <= coarse


@pytest.mark.parametrize("spec", [UINT8, INT8, UINT4], ids=str)
def test_the_gradient_is_that_of_rounding_passed_straight_through(
    spec: QuantSpec,
) -> None:
    """Torch's own differentiation of x' = low + s * round((x - low) / s) is the reference."""
    torch = pytest.importorskip("torch")
    x, w = tokens(), weight(hears_outliers=True)
    # On a grid that holds zero, where no zero point is rounded.
    steps = 2**spec.bits - (2 if spec.symmetric else 1)
    low, high = (-5.0, 5.0) if spec.symmetric else (-0.4 * 10, 0.6 * 10)
    ends = torch.tensor([low, high], dtype=torch.float64, requires_grad=True)
    value = torch.from_numpy(x).double()
    scale = (ends[1] - ends[0]) / steps
    inner = (torch.clamp(value, ends[0], ends[1]) - ends[0]) / scale
    through = inner + (torch.round(inner) - inner).detach()
    error = (through * scale + ends[0] - value) @ torch.from_numpy(w).double().T
    (error**2).sum().backward()
    loss, gradient = OutputLoss(x, [w], spec)._with_gradient((low, high))
    assert loss == pytest.approx(float((error.detach() ** 2).sum()), rel=1e-4)
    expected = ends.grad.numpy()
    if spec.symmetric:
        both = (expected[1] - expected[0]) / 2
        expected = np.asarray([-both, both])
    np.testing.assert_allclose(gradient, expected, rtol=1e-2, atol=1e-3 * loss)


def test_how_far_quantiles_go_follows_the_bits() -> None:
    """0.1 below 1 at 8 bits, 0.3 at 6, 0.9 at 4 (the paper's reference code)."""
    assert [reach(spec) for spec in (UINT8, INT8, INT6, UINT4)] == [0.1, 0.1, 0.3, 0.9]
    made = calibrated(tokens(), iterations=0)
    tried = list(made._coarse(UINT8))
    assert len(tried) == 10
    assert len(list(made._coarse(UINT4))) == 90
    assert len(list(calibrated(tokens(), step=0.05)._coarse(UINT8))) == 2
    assert tried[0] == (pytest.approx(tokens().min()), pytest.approx(tokens().max()))
    widths = [high - low for low, high in tried]
    assert widths == sorted(widths, reverse=True)


def test_a_set_quantile_is_taken_as_it_is() -> None:
    x = tokens()
    made = calibrated(x, quantile=0.9)
    low, high = (float(end) for end in made.range_for(UINT8, lambda: 1 / 0))
    expected = quantile_ends(x, 0.9)
    assert (low, high) == pytest.approx(expected, abs=0.1)


def test_the_sample_is_bounded_and_even() -> None:
    sample = TokenSample()
    numbers = np.arange(3000, dtype=np.float32)
    for part in np.array_split(numbers, 7):
        sample.update(np.repeat(part[:, None], 4, axis=1).reshape(1, -1, 4))
    kept = sample.tokens[:, 0]
    assert 512 <= len(kept) <= 1024
    np.testing.assert_array_equal(kept, numbers[:: int(kept[1])])
    wide = TokenSample()
    wide.update(np.zeros((40, 2**15), np.float32))
    assert wide.tokens.shape[0] <= 16
    other = TokenSample()
    other.update(np.full((5, 4), -1, np.float32))
    other.merge(sample)
    assert other.tokens.shape[0] <= 1024
    assert (other.tokens[:2] == -1).all()
    fresh = TokenSample()
    fresh.merge(other)
    np.testing.assert_array_equal(fresh.tokens, other.tokens)


@pytest.mark.parametrize("backend", ["torch", "onnx", "numpy"])
def test_layers_are_quantized_for_what_they_hear(backend: str, tmp_path: Path) -> None:
    """The weights of a value's readers reach the calibrator, after a transform too."""
    torch = pytest.importorskip("torch")
    from octavo.core.contract.plugins import PluginHost
    from octavo.core.quantizing.realize import Realizer
    from octavo.core.values.space import TuningSpace, Unit
    from tests.helpers import opened_on

    net = torch.nn.Sequential(torch.nn.Linear(32, 24), torch.nn.Linear(24, 8)).eval()
    x = tokens()
    ranges = []
    for hears_outliers in (True, False):
        with torch.no_grad():
            net[0].weight.copy_(torch.from_numpy(weight(hears_outliers=hears_outliers)))
        host = PluginHost(third_party=False)
        model = opened_on(backend, net, (torch.from_numpy(x),), tmp_path)
        units = []
        for op in (op for op in model.view.ops if op.type == "linear"):
            first = next(s for s in model.capability.for_op(op) if s.mode == "static")
            scheme = first.model_copy(update={"calibrator": PartChoice(kind="token")})
            units.append(Unit(op.name, op.type, (op.name,), (scheme, OpScheme())))
        made = Realizer(model, TuningSpace(backend, tuple(units), ((),)), host)
        made.calibrate([(part,) for part in np.array_split(x, 2)])
        found = made.parameters(made.space.recipe(made.space.first()))
        (params,) = found[units[0].name].inputs
        ranges.append(float(params.scale))
    assert ranges[1] < 0.3 * ranges[0]
