"""A small convolution network with batch norms, trained on scikit-learn's digits.

Its channels are then rescaled by 2**-6 to 2**6: the same function, and int8 loses it.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from octavo.core.contract.adapter import Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import TuningSpace, Unit
from tests.helpers import opened_on
from tests.tiny import digits

HOST = PluginHost(third_party=False)


@lru_cache(1)
def trained() -> nn.Sequential:
    """Return the network in eval mode, as it was trained."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 24, 2), (24, 24, 2)):
        layers.append(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)
    )
    x, y = images()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-2)
    for _ in range(6):
        for i in torch.randperm(1200).split(100):
            loss = nn.functional.cross_entropy(net(x[i]), y[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def rescaled() -> nn.Sequential:
    """Return a copy of the same function whose inner channels lie 2**12 apart."""
    net = copy.deepcopy(trained())
    random = np.random.default_rng(0)
    with torch.no_grad():
        for norm, reader in ((net[1], net[3]), (net[4], net[6])):
            exponents = random.uniform(-6, 6, norm.num_features)
            factors = torch.from_numpy(2.0**exponents).float()
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            reader.weight.div_(factors[:, None, None])
    return net


@lru_cache(1)
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return (images of shape (n, 1, 8, 8), labels)."""
    x, y = digits()
    return torch.from_numpy(x).reshape(-1, 1, 8, 8), torch.from_numpy(y).long()


def opened(backend: str, net: nn.Module, folder: Path) -> Opened:
    """Open a network on one backend; others than PyTorch read its ONNX export."""
    return opened_on(backend, net, (images()[0][:64],), folder)


def realizer(model: Opened, *chains: tuple[PartChoice, ...]) -> Realizer:
    """Return what carries out int8 static after chains of transforms; it is calibrated."""
    units = []
    for op in model.view.ops:
        if op.type in ("conv", "linear"):
            offered = model.capability.for_op(op)
            static = next(scheme for scheme in offered if scheme.mode == "static")
            units.append(Unit(op.name, op.type, (op.name,), (static, OpScheme())))
    made = Realizer(model, TuningSpace(model.name, tuple(units), ((), *chains)), HOST)
    x = images()[0]
    made.calibrate([(x[i : i + 64].numpy(),) for i in range(0, 256, 64)])
    return made


def accuracy(made: Realizer, *transforms: PartChoice) -> float:
    """Return the accuracy of int8 static after transforms, on images of no training."""
    recipe = made.space.recipe(made.space.first(), transforms)
    return accuracy_of(made, recipe)


def accuracy_of(made: Realizer, recipe: Recipe) -> float:
    """Return the accuracy of a recipe on images of no training."""
    x, y = images()
    (logits,) = made.candidate(recipe).run((x[1200:].numpy(),))
    return float((logits.argmax(1) == y[1200:].numpy()).mean())
