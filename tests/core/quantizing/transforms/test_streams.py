"""Factors of channels pass residual sums, ReLU and pooling, on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.core.values.recipe import Recipe  # noqa: E402
from tests.helpers import opened_on  # noqa: E402

nn = torch.nn


class Residual(nn.Module):
    """A stem, a residual block with a depthwise convolution inside, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide, self.wide_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        for norm in (self.stem_norm, self.wide_norm):
            nn.init.uniform_(norm.weight, 0.2, 3)
            nn.init.normal_(norm.bias)
            norm.running_var.uniform_(0.5, 2)
            norm.running_mean.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem_norm(self.stem(x))), 2)
        x = torch.relu(x + self.wide_norm(self.wide(torch.relu(self.deep(x)))))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


@pytest.mark.parametrize("backend", ["torch", "onnx", "numpy"])
def test_a_residual_stream_is_one_group(backend: str, tmp_path: Path) -> None:
    net, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    session: Any = opened_on(backend, net, (x,), tmp_path).session
    groups = [g for g in session.describe().groups if g.kind == "rescale"]
    (stream,) = [g for g in groups if len(g.members) == 2]
    names = "".join(stream.members)
    assert "deep" in names and "head" in names
    # Means of what is added up are added, and so are variances.
    gains = [net.stem_norm.weight, net.wide_norm.weight]
    shifts = [net.stem_norm.bias, net.wide_norm.bias]
    gain = np.sqrt(sum(np.square(g.detach().numpy()) for g in gains))
    shift = sum(s.detach().numpy() for s in shifts)
    np.testing.assert_allclose(session.tensor(stream.gain), gain, rtol=1e-5)
    np.testing.assert_allclose(session.tensor(stream.shift), shift, rtol=1e-5)
    assert not stream.rectified
    random = np.random.default_rng(0)
    factors = {
        g.name: (2.0 ** random.uniform(-3, 3, g.channels)).astype(np.float32)
        for g in groups
    }
    assert len(groups) == 2
    twice = session.rescale(factors).rescale({stream.name: factors[stream.name]})
    (found,) = twice.apply(Recipe(backend=backend), {}).run((x.numpy(),))
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    changed = factors[stream.name] ** 2
    np.testing.assert_allclose(twice.tensor(stream.gain), gain / changed, rtol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "onnx", "numpy"])
def test_a_stream_that_something_else_reads_is_left_alone(
    backend: str, tmp_path: Path
) -> None:
    class Leaving(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem_norm(self.stem(x)))
            return torch.sigmoid(x) + self.wide(torch.relu(self.deep(x)))

    net, x = Leaving().eval(), torch.randn(2, 3, 8, 8)
    view = opened_on(backend, net, (x,), tmp_path).view
    groups = [g for g in view.groups if g.kind == "rescale"]
    assert [len(g.members) for g in groups] == [1]
    assert "wide" in groups[0].members[0]
