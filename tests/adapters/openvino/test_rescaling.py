"""Channels that trade scale: within the weights of a stream, or by a step before a product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import octavo  # noqa: E402
from octavo.core.contract.adapter import Opened  # noqa: E402
from octavo.core.values.recipe import Recipe  # noqa: E402
from tests.helpers import opened_on  # noqa: E402

CHANNELS = 20


class Branches(nn.Module):
    """Two convolutions that a sum ties together, whose channels lie a thousand apart."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.inner = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.last = nn.Conv2d(CHANNELS, 8, 1)
        self.head = nn.Linear(8, 4)
        self.between = between or nn.Identity()
        factors = torch.where(torch.arange(CHANNELS) % 10 == 0, 30.0, 0.03)
        with torch.no_grad():
            for layer in (self.stem, self.inner):
                layer.weight.mul_(factors[:, None, None, None])
                layer.bias.mul_(factors)
            for layer in (self.inner, self.last):
                layer.weight.div_(factors[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.between(x) + self.inner(x))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def images() -> np.ndarray:
    return np.random.default_rng(0).random((32, 3, 8, 8)).astype(np.float32)


def open_it(net: nn.Module, folder: Path) -> Opened:
    return opened_on("openvino", net.eval(), (images(),), folder)


def error(net: nn.Module, folder: Path, *require: str) -> float:
    """Return the error of int8 after transforms, as a share of the float outputs' spread."""
    opened_on("openvino", net.eval(), (images(),), folder)
    file = next(folder.glob("*.onnx"))
    settings: dict[str, Any] = {
        "rules": [{"types": ["linear", "conv"], "scheme": "int8-static"}],
        "require": list(require),
        "transforms": [],
    }
    made = octavo.quantize_model(file, settings, [(images(),)], backend="openvino")
    with torch.no_grad():
        exact = net(torch.from_numpy(images())).numpy()
    recipe = made.candidate.recipe
    assert all(made.ledger[op].realization == "kernel" for op in recipe)
    got = np.asarray(made.model(images()))
    return float(np.abs(got - exact).max() / np.ptp(exact))


def test_a_sum_of_branches_keeps_its_small_channels_in_int8(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "equal").mkdir()
    assert error(Branches(), tmp_path / "plain") > 0.1
    assert error(Branches(), tmp_path / "equal", "equalization") < 0.05


def test_factors_of_a_stream_go_into_weights_and_change_nothing(tmp_path: Path) -> None:
    opened = open_it(Branches(), tmp_path)
    groups = [g for g in opened.view.groups if g.kind == "rescale"]
    tied = next(g for g in groups if g.channels == CHANNELS)
    assert not tied.online
    assert len(tied.values) > 2
    random = np.random.default_rng(1)
    factors = {g.name: np.exp(random.normal(0, 2, g.channels)) for g in groups}
    factors = {name: f.astype(np.float32) for name, f in factors.items()}
    session = opened.session.rescale(factors)
    (before,) = opened.session.apply(Recipe({}), {}).run((images(),))
    (after,) = session.apply(Recipe({}), {}).run((images(),))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    session = opened.session.rescale({tied.name: factors[tied.name]})
    stem = next(op for op in opened.view.ops if op.name == tied.producer)
    assert stem.weight is not None
    changed = session.tensor(stem.weight.name) / opened.session.tensor(stem.weight.name)
    expected = 1 / factors[tied.name][:, None, None, None]
    np.testing.assert_allclose(
        changed, np.broadcast_to(expected, changed.shape), rtol=1e-3
    )


class Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


def test_what_an_op_that_is_not_shown_reads_is_no_stream(tmp_path: Path) -> None:
    # A sine of a value divided is no value divided: only steps are left.
    opened = open_it(Branches(Sine()), tmp_path)
    groups = [g for g in opened.view.groups if g.kind == "rescale"]
    wide = [g for g in groups if g.channels == CHANNELS]
    assert wide
    assert all(g.online for g in wide)
    factors = {g.name: np.full(g.channels, 3.0, np.float32) for g in groups}
    (before,) = opened.session.apply(Recipe({}), {}).run((images(),))
    (after,) = opened.session.rescale(factors).apply(Recipe({}), {}).run((images(),))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
