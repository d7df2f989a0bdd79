"""AutoRound and AdaRound against their papers' formulas in plain torch, with autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from octavo.core.contract.algorithm import WeightContext
from octavo.core.numerics.affine import integer_range
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.algorithms.adaround import AdaRound, AdaRoundConfig
from octavo.core.quantizing.algorithms.autoround import AutoRound, AutoRoundConfig
from octavo.core.quantizing.algorithms.learned import normalised
from octavo.core.quantizing.algorithms.output_grid import output_grid
from octavo.core.values.scheme import QuantSpec

Tensor = torch.Tensor
GROUP = 16


def layer(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight (12, 48), and the Gram matrix of correlated inputs."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.eye(48) + 0.4 * torch.randn(48, 48, generator=random)
    inputs = torch.randn(300, 48, generator=random) @ mix
    weight = torch.randn(12, 48, generator=random)
    return weight, inputs.T @ inputs


def straight(x: Tensor) -> Tensor:
    return x + (torch.round(x) - x).detach()


@dataclass
class ByHand:
    """AutoRound by its eqs. 3 to 6, each row's best state kept.

    Attributes:
        codes: Of the best states, (rows, features).
        scale: Likewise, (rows, groups).
        zero: Likewise.
        losses: Of each state that was met, by row.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    losses: list[Tensor]

    @classmethod
    def of(
        cls, weight: Tensor, gram: Tensor, spec: QuantSpec, steps: int, rate: float
    ) -> ByHand:
        grid, _ = output_grid(weight, spec, WeightContext(gram=gram), normalised(gram))
        qmin, qmax = integer_range(spec)
        w = weight.double().view(12, -1, GROUP)
        g = normalised(gram).double()
        first, middle = grid.scale.double(), grid.zero_point.double()
        low, high = first * (qmin - middle), first * (qmax - middle)
        v = torch.zeros_like(w, requires_grad=True)
        alpha = torch.ones_like(low, requires_grad=True)
        beta = torch.ones_like(low, requires_grad=True)
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for step in range(steps + 1):
            if spec.symmetric:
                scale, zero = first * beta, middle
            else:
                scale = (high * beta - low * alpha) / (qmax - qmin)
                zero = straight(qmin - low * alpha / scale)
            whole = straight(w / scale[..., None] + v) + zero[..., None]
            codes = whole.clamp(qmin, qmax)
            error = ((codes - zero[..., None]) * scale[..., None] - w).reshape(12, -1)
            loss = ((error @ g) * error).sum(1)
            found.append((loss.detach(), codes.detach(), scale.detach(), zero.detach()))
            learned = [v, beta] if spec.symmetric else [v, alpha, beta]
            slopes = torch.autograd.grad(loss.sum(), learned)
            now = rate * (1 - step / steps)
            with torch.no_grad():
                for parameter, slope in zip(learned, slopes, strict=True):
                    parameter -= now * slope.sign()
                v.clamp_(-0.5, 0.5)
                alpha.clamp_(0.5, 1.25)
                beta.clamp_(0.5, 1.25)
        losses = [state[0] for state in found]
        best = torch.stack(losses).argmin(0)
        kept = [
            torch.stack([found[int(b)][i][r] for r, b in enumerate(best)])
            for i in (1, 2, 3)
        ]
        return cls(kept[0].view(12, -1), kept[1], kept[2], losses)


@pytest.mark.parametrize(
    ("dtype", "symmetric"), [("uint2", False), ("uint3", False), ("int3", True)]
)
@pytest.mark.parametrize("rate", [0.03, 0.1])
def test_autoround_is_the_papers(dtype: str, symmetric: bool, rate: float) -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype=dtype, symmetric=symmetric, granularity=f"group:{GROUP}")
    # Few steps: the signs of slopes near zero differ between float32 and float64, and all that
    # follows with them.
    expected = ByHand.of(weight, gram, spec, 5, rate)
    settings = AutoRoundConfig(iterations=5, step=rate)
    found = AutoRound(settings).quantize(weight, spec, WeightContext(gram=gram))
    assert (found.codes == expected.codes).float().mean() > 0.99
    same = (found.params.zero_point == expected.zero).float().mean()
    assert same > 0.97
    # What makes up for shrunk outputs multiplies a whole row.
    growth = found.params.scale / expected.scale
    by_row = growth / growth.median(1, keepdim=True).values
    assert (by_row - 1).abs().lt(1e-3).float().mean() > 0.9
    # The reference finds something, and the last state is not each row's best.
    losses = torch.stack(expected.losses)
    assert losses.min(0).values.sum() < 0.98 * losses[0].sum()
    assert losses[-1].sum() > 1.05 * losses.min(0).values.sum()


def test_autoround_starts_at_a_step_of_one_by_the_iterations() -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype="uint2", symmetric=False, granularity=f"group:{GROUP}")
    context = WeightContext(gram=gram)
    own, given = (
        AutoRound(AutoRoundConfig(iterations=5, step=step)).quantize(
            weight, spec, context
        )
        for step in (None, 0.2)
    )
    assert torch.equal(own.codes, given.codes)
    assert torch.equal(own.params.scale, given.params.scale)


def errors(found: QuantizedTensor, weight: Tensor, gram: Tensor) -> Tensor:
    error = found.dequantize().double() - weight.double()
    return ((error @ gram.double()) * error).sum(1)


def test_more_iterations_of_autoround_find_less_error() -> None:
    weight, gram = layer(1)
    spec = QuantSpec(dtype="uint2", symmetric=False, granularity=f"group:{GROUP}")
    few, many = (
        AutoRound(AutoRoundConfig(iterations=n)).quantize(
            weight, spec, WeightContext(gram=gram)
        )
        for n in (1, 100)
    )
    assert errors(many, weight, gram).sum() < 0.9 * errors(few, weight, gram).sum()


def adaround_by_hand(
    weight: Tensor, gram: Tensor, spec: QuantSpec, settings: AdaRoundConfig
) -> Tensor:
    """Return the codes by eqs. 21 to 24, with torch's Adam; rows that are worse than rounding to
    nearest are rounded to nearest."""
    grid, _ = output_grid(weight, spec, WeightContext(gram=gram), normalised(gram))
    qmin, qmax = integer_range(spec)
    scale = grid.scale.double()[..., None].expand(-1, -1, GROUP).reshape(12, -1)
    zero = grid.zero_point.double()[..., None].expand(-1, -1, GROUP).reshape(12, -1)
    w, g = weight.double(), normalised(gram).double()
    floor = (w / scale).floor()
    share = (w / scale - floor).clamp(0.001, 0.999)
    v = (-torch.log(1.2 / (share + 0.1) - 1)).requires_grad_()
    adam = torch.optim.Adam([v], lr=settings.step)
    unit = 1 / (grid.scale.double() ** 2).mean() * (GROUP * 3 * 12) / (12 * 48)
    late = settings.warm_up * settings.iterations

    def off(codes: Tensor) -> Tensor:
        error = (codes.clamp(qmin, qmax) - zero) * scale - w
        return ((error @ g) * error).sum(1)

    for i in range(settings.iterations):
        h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
        loss = unit * off(floor + h + zero).sum()
        if i >= late:
            b = 2 + 18 * (1 - (i - late) / max(1.0, settings.iterations - late))
            loss = loss + settings.regularization * (1 - (2 * h - 1).abs() ** b).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    learned = floor + (v >= 0) + zero
    nearest = torch.round(w / scale) + zero
    better = off(learned) < off(nearest)
    return torch.where(better[:, None], learned, nearest).clamp(qmin, qmax)


@pytest.mark.parametrize(("dtype", "symmetric"), [("uint2", False), ("int3", True)])
@pytest.mark.parametrize("regularization", [0.01, 3.0])
def test_adaround_is_the_papers(
    dtype: str, symmetric: bool, regularization: float
) -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype=dtype, symmetric=symmetric, granularity=f"group:{GROUP}")
    settings = AdaRoundConfig(iterations=60, step=0.05, regularization=regularization)
    found = AdaRound(settings).quantize(weight, spec, WeightContext(gram=gram))
    expected = adaround_by_hand(weight, gram, spec, settings)
    assert (found.codes == expected).float().mean() > 0.98
    grid, _ = output_grid(weight, spec, WeightContext(gram=gram), normalised(gram))
    nearest = torch.round(weight.view(12, -1, GROUP) / grid.scale[..., None])
    nearest = (nearest + grid.zero_point[..., None]).view(12, -1)
    assert (found.codes == nearest).float().mean() < 0.97


def test_both_take_arrays_of_numpy_too() -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype="uint3", symmetric=False, granularity=f"group:{GROUP}")
    parts: list[Any] = [
        AutoRound(AutoRoundConfig(iterations=10)),
        AdaRound(AdaRoundConfig(iterations=10)),
    ]
    for part in parts:
        torch_codes = part.quantize(weight, spec, WeightContext(gram=gram)).codes
        context = WeightContext(gram=gram.numpy())
        codes = part.quantize(weight.numpy(), spec, context).codes
        assert np.mean(codes == torch_codes.numpy()) > 0.97
