"""Convolution networks as torchvision and timm build them, small, with random but settled weights.

Random networks are degenerate as they come: their activations shrink or grow from layer to layer
and their outputs hardly differ between pictures. Here the statistics of the batch norms are those
of data, and the logits are spread as a trained classifier's are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 100
SIZE = 48
LOGITS = 1.5
"""Standard deviation of the logits: a random network's errors are larger than a trained one's, and
beyond 1 nat KL says little."""


def normed(inside: int, outside: int, size: int, **more: int) -> list[nn.Module]:
    """Return a convolution without bias and its batch norm."""
    more.setdefault("padding", size // 2)
    return [
        nn.Conv2d(inside, outside, size, bias=False, **more),
        nn.BatchNorm2d(outside),
    ]


class Residual(nn.Module):
    """torchvision's ``BasicBlock``: two 3x3 convolutions beside a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *normed(inside, outside, 3, stride=stride),
            nn.ReLU(),
            *normed(outside, outside, 3),
        )
        is_same = stride == 1 and inside == outside
        around = nn.Sequential(*normed(inside, outside, 1, stride=stride))
        self.around = nn.Identity() if is_same else around

    def forward(self, x: Tensor) -> Tensor:
        """Return maps, shape (batch, channels, height, width)."""
        return torch.relu(self.body(x) + self.around(x))


class Inverted(nn.Module):
    """MobileNetV2's block: wider, depthwise, narrow again."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inside
        self.body = nn.Sequential(
            *normed(inside, wide, 1),
            nn.ReLU6(),
            *normed(wide, wide, 3, stride=stride, groups=wide),
            nn.ReLU6(),
            *normed(wide, outside, 1),
        )
        self.is_residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """Return maps, shape (batch, channels, height, width)."""
        return x + self.body(x) if self.is_residual else self.body(x)


def network(block: type[nn.Module]) -> nn.Module:
    """Return a settled classifier of pictures of (3, 48, 48): a stem, ten blocks, a linear
    layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [*normed(3, 32, 3, stride=2), nn.ReLU()]
    inside = 32
    for outside, stride in ((32, 1), (64, 2), (128, 2), (192, 1), (256, 2)):
        layers += [block(inside, outside, stride), block(outside, outside, 1)]
        inside = outside
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, CLASSES)]
    made = nn.Sequential(*layers)
    _settle(made)
    return made.eval()


@torch.no_grad()
def _settle(model: nn.Sequential) -> None:
    """Draw the weights, take the batch norms' statistics from data, and spread the logits."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            # Trained scales differ from channel to channel.
            nn.init.uniform_(module.weight, 0.3, 1.7)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = None  # a plain mean over the batches
    model.train()
    for seed in range(4):
        model(pictures(64, seed))
    model.eval()
    head = model[-1]
    assert isinstance(head, nn.Linear)
    logits = model(pictures(64, 5))
    factor = LOGITS / logits.std(0).mean()
    head.weight.mul_(factor)
    head.bias.copy_(-factor * logits.mean(0))


def pictures(count: int, seed: int) -> Tensor:
    """Return smooth random fields with some noise, shape (count, 3, 48, 48)."""
    drawn = torch.Generator().manual_seed(1000 + seed)
    whole = torch.zeros(count, 3, SIZE, SIZE)
    for size in (3, 6, 12, 48):
        field = torch.randn(count, 3, size, size, generator=drawn)
        whole += nn.functional.interpolate(
            field, SIZE, mode="bilinear", align_corners=False
        ) / (size / 3)
    return whole
