"""Outlier Suppression's gamma migration: whatever a norm multiplies by goes into its readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.core.contract.adapter import Opened  # noqa: E402
from octavo.core.contract.plugins import PluginHost  # noqa: E402
from octavo.core.quantizing.realize import Realizer  # noqa: E402
from octavo.core.quantizing.transforming import norms_as_read  # noqa: E402
from octavo.core.values.recipe import Recipe  # noqa: E402
from octavo.core.values.scheme import PartChoice  # noqa: E402
from octavo.core.values.space import TuningSpace  # noqa: E402
from tests.helpers import opened_on  # noqa: E402

nn = torch.nn
HOST = PluginHost(third_party=False)
MIGRATION = PartChoice(kind="outlier_suppression")
SMOOTHING = PartChoice(kind="smoothquant")


class OneMoreNorm(nn.Module):
    """Gemma's: it multiplies by 1 + weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.float().pow(2).mean(-1, keepdim=True)
        return (x.float() * torch.rsqrt(mean + 1e-6)) * (1.0 + self.weight.float())


class WrittenNorm(nn.Module):
    """A layer norm in single operators, with a shift and a gain of 1 + weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(16))
        self.bias = nn.Parameter(torch.randn(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
        return centred / deviation * (1 + self.weight) + self.bias


def _gemma() -> Any:
    transformers = pytest.importorskip("transformers.models.gemma.modeling_gemma")
    return transformers.GemmaRMSNorm(16)


NORMS = {
    "layer": lambda: nn.LayerNorm(16),
    "one more": OneMoreNorm,
    "written": WrittenNorm,
    "gemma": _gemma,
}


class Block(nn.Module):
    """A norm that two linear layers read, and, as in BERT, a residual."""

    def __init__(self, norm: nn.Module, residual: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.residual = norm, residual
        self.up, self.gate = nn.Linear(16, 16), nn.Linear(16, 16)
        with torch.no_grad():
            norm.weight.copy_(torch.randn(16))
            norm.weight[::5] *= 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        z = self.up(y) * torch.sigmoid(self.gate(y))
        return z + y if self.residual else z


def _realizer(backend: str, net: Any, folder: Path) -> tuple[Realizer, list[Any]]:
    data = [torch.randn(5, 7, 16) for _ in range(2)]
    opened = opened_on(backend, net, (data[0],), folder)
    chains = ((), (MIGRATION,), (SMOOTHING, MIGRATION))
    made = Realizer(opened, TuningSpace(backend, _units(opened), chains), HOST)
    made.calibrate([(x.numpy(),) for x in data])
    return made, data


def _units(opened: Opened) -> Any:
    from octavo.core.opening.spaces import build_space

    return build_space(opened, ()).units


@pytest.mark.parametrize("chain", [(MIGRATION,), (SMOOTHING, MIGRATION)], ids=len)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("backend", ["torch", "onnx", "numpy"])
def test_the_gain_goes_into_the_readers(
    backend: str, kind: str, residual: bool, chain: Any, tmp_path: Path
) -> None:
    """Wei et al. 2022, eqs. 3 and 4: x' = x / |gamma|, W' = W |gamma|."""
    net = Block(NORMS[kind](), residual).eval()
    gain = net.norm.weight.detach().numpy().copy()
    if kind != "layer":
        gain = 1 + gain
    made, data = _realizer(backend, net, tmp_path)
    groups = [g for g in made.opened.view.groups if g.kind == "rescale" and g.gain]
    (group,) = [g for g in groups if len(g.members) == 2]
    after = made.prepared(chain)
    # All that was done to the value comes to the gain, whatever went before.
    maps, _ = after.changes[group.value]
    total = np.prod([np.asarray(change.scale) for change in maps], axis=0)
    np.testing.assert_allclose(total, np.abs(gain), rtol=1e-4)
    # As members read it, the norm multiplies by 1 or -1.
    known = np.asarray(norms_as_read(made.opened.view, after)(group.gain)).ravel()
    one_more = 1.0 if group.offset else 0.0
    np.testing.assert_allclose(np.abs(known + one_more), 1, rtol=1e-4)
    # Their weights take it.
    for member in group.members:
        weight = made.opened.view.by_name[member].weight
        assert weight is not None
        before = np.asarray(made.opened.session.tensor(weight.name))
        now = np.asarray(after.session.tensor(weight.name))
        factors = np.abs(gain) if weight.channel_axis == 0 else np.abs(gain)[:, None]
        np.testing.assert_allclose(now, before * factors, rtol=1e-4, atol=1e-6)
    found = made.candidate(Recipe({}, chain, backend)).run((data[0].numpy(),))[0]
    expected = net(data[0]).detach().numpy()
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * largest)
