"""Distillation against its formulas, with torch's own automatic differentiation."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from octavo.core.contract.adapter import Batch
from octavo.core.contract.training import Distillation
from octavo.core.numerics.tensor import QuantizedTensor

from .test_blocks import Judged, straight
from .test_training import TWO_BITS, prepared

Tensor = torch.Tensor


@dataclass
class Layer:
    """One linear layer, in groups of 32, which learns v and s:
    w_q = s (clip(round(w / s + v) + z) - z)."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    zero: Tensor
    offset: Tensor

    @classmethod
    def of(cls, module: nn.Linear, start: QuantizedTensor) -> Layer:
        scale, zero = start.params.scale.clone(), start.params.zero_point.float()
        weight = module.weight.detach().view(len(scale), -1, 32)
        # Offsets begin where the start's codes are, but for a hundredth of a step.
        ratio = weight / scale[..., None]
        centre = start.codes.view(weight.shape) - zero[..., None]
        offset = (centre - ratio).sign() * ((centre - ratio).abs() - 0.49).clamp(min=0)
        return cls(
            weight,
            module.bias.detach(),
            scale.requires_grad_(),
            zero,
            offset.requires_grad_(),
        )

    def codes(self) -> Tensor:
        ratio = self.weight / self.scale[..., None]
        return (straight(ratio + self.offset) + self.zero[..., None]).clamp(0, 3)

    def __call__(self, x: Tensor) -> Tensor:
        steps = self.codes() - self.zero[..., None]
        weight = (steps * self.scale[..., None]).flatten(1)
        return nn.functional.linear(x, weight, self.bias)


def by_hand(
    model: Judged, layers: list[Layer], batches: list[Batch], settings: Distillation
) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's codes and scales: Adam on the cross entropy of softened predictions, one
    batch a step, a rate that falls linearly; of four states the one that the fourth batch likes
    best."""
    one, two = layers

    def loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            odds = (model(x) / settings.temperature).softmax(-1)
        own = (two(torch.relu(one(x))) / settings.temperature).log_softmax(-1)
        # The teacher's are held in half the bytes.
        return -(odds.bfloat16() * own).sum(-1).mean()

    def state() -> list[tuple[Tensor, Tensor]]:
        return [(own.codes().detach(), own.scale.detach().clone()) for own in layers]

    rates = [settings.scale_rate * float(own.scale.detach().mean()) for own in layers]
    groups = [
        *(
            {"params": [own.scale], "lr": r}
            for own, r in zip(layers, rates, strict=True)
        ),
        {"params": [own.offset for own in layers], "lr": settings.rate},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    full = [group["lr"] for group in optimizer.param_groups]
    judge = batches[3][0]
    with torch.no_grad():
        best, least = state(), float(loss(judge))
    for step in range(settings.steps):
        for group, rate in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = rate * (1 - step / settings.steps)
        optimizer.zero_grad()
        loss(batches[step % 3][0]).backward()
        optimizer.step()
        if step % (settings.steps // 4) == settings.steps // 4 - 1:
            with torch.no_grad():
                found = float(loss(judge))
            if found < least:
                best, least = state(), found
    return best


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_cross_entropy_of_predictions(temperature: float) -> None:
    torch.manual_seed(0)
    model = Judged().eval()
    batches: list[Batch] = [(3 * torch.randn(64, 32),) for _ in range(4)]
    session, _, start = prepared(model, batches, TWO_BITS)
    settings = Distillation(
        steps=8, rate=0.05, scale_rate=0.02, temperature=temperature, half=False
    )
    learned = session.training().distill(start, batches, settings)
    layers = [Layer.of(model.get_submodule(n), start[n].weight) for n in ("one", "two")]
    wanted = by_hand(model, layers, batches, settings)
    for name, (codes, scale) in zip(("one", "two"), wanted, strict=True):
        found, before = learned[name].weight, start[name].weight
        same = found.codes.view(codes.shape) == codes
        assert same.float().mean() > 0.99
        # Both were learned.
        assert (before.codes.view(codes.shape) != codes).float().mean() > 0.1
        moved = (scale - before.params.scale).abs()
        assert (moved / before.params.scale).mean() > 0.05
        error = (found.params.scale - scale).abs()
        assert error.mean() < 0.01 * moved.mean()


class Padded(Judged):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x)


def test_predictions_for_padding_count_for_nothing() -> None:
    torch.manual_seed(0)
    model = Padded().eval()
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[0, :2] = mask[2, 0] = 0
    x = torch.randn(3, 5, 32)
    spoiled = torch.where(mask[..., None] == 1, x, 9.0)
    session, _, start = prepared(model, [(x, mask)], TWO_BITS)
    settings = Distillation(steps=8, rate=0.05, scale_rate=0.02, half=False)
    plain, other = (
        session.training().distill(start, [(given, mask)], settings)
        for given in (x, spoiled)
    )
    for name in ("one", "two"):
        found, wanted = other[name].weight, plain[name].weight
        assert not torch.equal(wanted.codes, start[name].weight.codes)
        assert torch.equal(found.codes, wanted.codes)
        torch.testing.assert_close(found.params.scale, wanted.params.scale)
