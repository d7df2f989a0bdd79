"""Scales, shifts and rotations on modules: taken in by norms, or done by the layers themselves."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import octavo
from octavo.adapters.pytorch import TorchConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import SchemeError
from octavo.core.numerics.channels import ChannelMap
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec
from tests.helpers import torch_session

HOST = PluginHost(third_party=False)
W8, X8 = (
    QuantSpec(dtype="int8", granularity="channel"),
    QuantSpec(dtype="uint8", symmetric=False),
)
SCHEMES = {
    "static": OpScheme(mode="static", weight=W8, input=X8),
    "dynamic": OpScheme(
        mode="dynamic", weight=W8, input=QuantSpec(dtype="int8", granularity="token")
    ),
    "weight_only": OpScheme(
        mode="weight_only", weight=QuantSpec(dtype="int8", granularity="group:32")
    ),
    "cast": OpScheme(mode="cast", weight=QuantSpec(dtype="bfloat16")),
}


class Block(nn.Module):
    """A norm with a shift, one without, layers without biases, a residual and a GELU; 96 channels,
    no power of two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.rms = nn.LayerNorm(96), nn.RMSNorm(96)
        self.left, self.right = nn.Linear(96, 64, bias=False), nn.Linear(96, 64)
        self.down, self.head = nn.Linear(64, 96, bias=False), nn.Linear(96, 32)
        with torch.no_grad():
            self.norm.bias.normal_(0, 2)
            self.norm.weight[::11] *= 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        y = x + self.down(nn.functional.gelu(self.left(y)) * self.right(y))
        return self.head(self.rms(y))


X = torch.randn(6, 8, 96, generator=torch.Generator().manual_seed(1))
MODEL = Block().eval()


SESSIONS = {how: torch_session(MODEL, (X,), capture=how) for how in ("auto", "modules")}
EXPECTED = MODEL(X).detach().numpy()


@st.composite
def changes(draw: Any, groups: list[Any]) -> dict[str, ChannelMap]:
    found = {}
    for group in draw(
        st.lists(st.sampled_from(groups), unique_by=lambda g: g.name, min_size=1)
    ):
        random = np.random.default_rng(draw(st.integers(0, 99)))
        scale = (
            random.uniform(0.3, 3, group.channels).astype(np.float32)
            if draw(st.booleans())
            else None
        )
        shift = (
            random.normal(0, 1, group.channels).astype(np.float32)
            if draw(st.booleans())
            else None
        )
        found[group.name] = ChannelMap(
            scale, shift, draw(st.none() | st.integers(0, 3))
        )
    return found


@given(st.data(), st.sampled_from(sorted(SESSIONS)))
@settings(max_examples=30, deadline=None)
def test_any_sequence_of_changes_keeps_the_function(data: Any, how: str) -> None:
    session = SESSIONS[how]
    groups = [g for g in session.describe().groups if g.kind == "rescale"]
    for change in data.draw(st.lists(changes(groups), min_size=1, max_size=3)):
        session = session.rescale(change)
    found = session.apply(Recipe(backend="torch"), {}).run((X,))[0]
    np.testing.assert_allclose(
        found, EXPECTED, rtol=1e-5, atol=1e-5 * np.abs(EXPECTED).max()
    )


@pytest.mark.parametrize("how", SESSIONS)
def test_groups_say_what_they_take(how: str) -> None:
    groups = {
        g.producer: g for g in SESSIONS[how].describe().groups if g.kind == "rescale"
    }
    assert all(g.takes == {"scale", "shift", "rotation"} for g in groups.values())
    assert {p: set(g.online) for p, g in groups.items()} == {
        "norm": {"rotation"}, "rms": {"shift", "rotation"}, "": {"scale", "shift", "rotation"},
    }  # fmt: skip


def test_convolutions_take_no_shift() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3, padding=1)).eval()
    session = HOST.adapters()["torch"].build().open(net, (torch.randn(1, 3, 8, 8),))
    (group,) = [g for g in session.describe().groups if g.kind == "rescale"]
    with pytest.raises(SchemeError, match="takes scale and no shift"):
        session.rescale({group.name: ChannelMap(shift=torch.ones(4))})


@pytest.mark.parametrize("how", ["auto", "modules"])
@pytest.mark.parametrize("mode", SCHEMES)
@pytest.mark.parametrize(
    "transform", ["hadamard", "outlier_suppression_plus", "smoothquant"]
)
def test_quantized_models_keep_them(
    how: Literal["auto", "modules"], mode: str, transform: str, tmp_path: Path
) -> None:
    """Each kind of layer carries its own changes out; saved, loaded and pickled models as well."""
    linear = [op.name for op in SESSIONS[how].describe().ops if op.type == "linear"]
    backend = {"kind": "torch", "capture": how}
    recipe = Recipe(
        dict.fromkeys(linear, SCHEMES[mode]), (PartChoice(kind=transform),), "torch"
    )
    made = octavo.quantize_model(MODEL, recipe, [(X,)], backend=backend, host=HOST)
    assert all(made.ledger[name].honoured for name in linear)
    found = made.candidate.run((X,))[0]
    assert np.abs(found - EXPECTED).mean() < 0.05 * np.abs(EXPECTED).mean()
    made.candidate.save(tmp_path)
    loaded = (
        HOST.adapters()["torch"].build(TorchConfig(capture=how)).load(tmp_path, Block())
    )
    np.testing.assert_allclose(loaded.run((X,))[0], found, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(made.candidate)).run((X,))[0], found
    )


def test_a_rescaled_session_exports_the_same_function(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.LayerNorm(96), nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 8)
    ).eval()
    session = HOST.adapters()["torch"].build().open(net, (X,))
    maps = {
        g.name: ChannelMap(torch.full((g.channels,), 2.0), torch.ones(g.channels), 0)
        for g in session.describe().groups
    }
    session.rescale(maps).export("onnx", tmp_path / "model.onnx")
    run = (
        HOST.adapters()["onnx"]
        .build()
        .open(str(tmp_path / "model.onnx"), (X.numpy(),))
        .reference()
    )
    np.testing.assert_allclose(
        run.run((X.numpy(),))[0], net(X).detach().numpy(), rtol=1e-4, atol=1e-4
    )
