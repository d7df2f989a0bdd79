"""Weights of 2 bits and inputs of 4: rounding leaves nothing, and training in the search wins it
back.

Esser et al. 2020, "Learned Step Size Quantization", report 2-bit networks within a few percent of
float; so is this one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import octavo
from tests import tiny

torch = pytest.importorskip("torch")
nn = torch.nn


def layer(inputs: int, outputs: int, stride: int = 1) -> Any:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def network(width: int = 16) -> Any:
    layers = [layer(1, width), layer(width, width, 2)]
    layers += [layer(width, width) for _ in range(4)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return nn.Sequential(*layers, head)


def test_two_bits_come_within_two_percent_of_float(tmp_path: Path) -> None:
    x, y = tiny.digits()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(x).reshape(-1, 1, 8, 8)[order]
    labels = torch.from_numpy(y)[order].long()

    def train(model: Any, steps: int) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            drawn = torch.randint(0, 1300, (64,))
            loss = nn.functional.cross_entropy(model(images[drawn]), labels[drawn])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()

    def accuracy(model: Any) -> float:
        with torch.no_grad():
            found = model(images[1300:]).argmax(1)
        return float((found == labels[1300:]).float().mean())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network()
        train(model, 100)
    model.eval()
    result = octavo.autotune(
        model,
        accuracy,
        [images[:128], images[128:256]],
        train_fn=partial(train, steps=250),
        recover={"kind": "qat", "start": "lsq"},
        rules=[
            {
                "types": ["conv", "linear"],
                "mode": "static",
                "weight": {"dtype": "int2"},
                "input": {"dtype": "uint4"},
            }
        ],
        budgets={"code_bits": 2},
        simulated=True,
        strategy="basic",
        minimise="size",
        tolerance=0.02,
        max_trials=1,
        storage=tmp_path / "h.db",
        accuracy={"guard": False},
    )
    rounded, trained = result.trials
    assert result.baseline.metrics["score"] > 0.95
    assert rounded.metrics["score"] < 0.5
    assert trained.metrics["score"] >= 0.98 * result.baseline.metrics["score"]
    assert result.goal_met
    assert {line.applied.weight_bits for line in trained.ledger.values()} == {2}
    assert {line.applied.input.bits for line in trained.ledger.values()} == {4}
