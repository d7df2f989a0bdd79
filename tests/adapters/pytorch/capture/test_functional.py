"""Functional calls with weights of their own, and products that no scheme reaches."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from octavo.adapters.pytorch import TorchConfig
from octavo.adapters.pytorch.adapter import TorchAdapter
from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import SchemeError
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from tests.helpers import opened_torch


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = (
            nn.Parameter(torch.randn(64, 64) / 8),
            nn.Parameter(torch.randn(64)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(F.linear(x, self.w, self.b))


class Functional(nn.Module):
    """Convolution, linear layers, attention without a module, and one weight that something else
    reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(64, 8, 3) / 5)
        self.inner = Inner()
        self.twice = nn.Parameter(torch.randn(64, 64) / 8)
        self.turned = nn.Parameter(torch.randn(64, 64) / 8)
        self.shared = nn.Parameter(torch.randn(64, 64) / 8)
        self.out = nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv1d(x, self.kernel, None, padding=1, groups=2).transpose(1, 2)
        x = self.inner(x)
        q, k = F.linear(x, self.twice), F.linear(x + 1, self.twice)
        v = F.linear(x, self.turned.t()) + F.linear(x, self.shared) * self.shared.mean()
        scores = torch.softmax(q @ k.transpose(1, 2) / 8, -1)
        x = torch.bmm(scores, v) + F.scaled_dot_product_attention(q, k, v)
        return self.out(x)


BATCH = (torch.linspace(-2, 2, 2 * 16 * 10).sin().view(2, 16, 10),)


def model() -> nn.Module:
    torch.manual_seed(0)
    return Functional().eval()


def test_calls_with_parameters_are_layers_and_the_rest_says_why_not() -> None:
    view = opened_torch(model(), BATCH).view
    kinds = {op.name: op.type for op in view.ops}
    assert kinds == {
        "kernel_layer": "conv",
        "inner.w_layer": "linear",
        "twice_layer": "linear",
        "turned_layer": "linear",
        "matmul": "matmul",
        "bmm": "matmul",
        "scaled_dot_product_attention": "attention",
        "out": "linear",
    }
    assert list(kinds) == [op.name for op in view.ops]
    weight = view.by_name["inner.w_layer"].weight
    assert weight is not None
    assert weight.name == "inner.w"
    assert view.by_name["inner.w_layer"].bias == "inner.b"
    assert view.by_name["inner.w_layer"].attributes["fused"] == "relu"
    assert all(
        "integer product of two activations" in view.by_name[n].out_of_reach
        for n in ("matmul", "bmm")
    )
    assert view.by_name["matmul"].inputs == ("twice_layer", "transpose_1")
    assert any("used elsewhere" in note and "linear" in note for note in view.notes)


@pytest.mark.parametrize("preset", ["int8-static", "int8-dynamic", "int8-weight-only"])
def test_functional_calls_are_quantized_saved_and_loaded(
    preset: str, tmp_path: Path
) -> None:
    float_model = model()
    o = opened_torch(float_model, BATCH)
    space = build_space(o)
    realizer = Realizer(o, space, PluginHost(third_party=False))
    realizer.calibrate([BATCH])
    candidate = realizer.candidate(preset_recipe(preset, space, o))
    assert isinstance(candidate, TorchCandidate)
    assert {"inner.w_layer", "twice_layer", "out"} <= set(candidate.recipe)
    assert "integer product" in candidate.ledger["bmm"].reason
    expected, got = float_model(*BATCH).detach().numpy(), candidate.run(BATCH)[0]
    assert 0 < np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)
    candidate.save(tmp_path)
    torch.manual_seed(1)
    loaded = TorchAdapter(TorchConfig()).load(tmp_path, Functional()).native
    for twin in (loaded, pickle.loads(pickle.dumps(candidate.native))):
        np.testing.assert_allclose(twin(*BATCH).detach(), got, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * sum(
        p.numel() for p in float_model.parameters()
    )


def test_the_model_and_its_baseline_keep_their_parameters(tmp_path: Path) -> None:
    float_model = model()
    o = opened_torch(float_model, BATCH)
    names = set(float_model.state_dict())
    assert set(o.session.reference().native.state_dict()) == names
    o.session.reference().save(tmp_path)
    assert (
        set(TorchAdapter(TorchConfig()).load(tmp_path, model()).native.state_dict())
        == names
    )
    plain = o.session.apply(preset_recipe("int8-dynamic", build_space(o), o), {})
    np.testing.assert_allclose(
        plain.run(BATCH)[0], float_model(*BATCH).detach(), rtol=1e-5, atol=1e-6
    )


def test_training_does_not_take_what_the_module_tree_does_not_call() -> None:
    o = opened_torch(model(), BATCH)
    space = build_space(o)
    realizer = Realizer(o, space, PluginHost(third_party=False))
    realizer.calibrate([BATCH])
    recipe = preset_recipe("int8-static", space, o)
    with pytest.raises(SchemeError, match="functional call"):
        o.session.training().prepare_qat(recipe, realizer.parameters(recipe))


class Bare(nn.Linear):
    """A subclass that computes something else, called where fx cannot follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.sum()) > 1e9:
            return x
        return F.linear(x, self.weight * 2) @ self.weight


def test_products_outside_of_layers_are_noted_where_nothing_can_be_traced() -> None:
    torch.manual_seed(0)
    view = opened_torch(
        nn.Sequential(nn.Linear(64, 64), Bare(64, 64, bias=False)),
        (torch.randn(2, 64),),
    ).view
    assert [op.name for op in view.ops] == [
        "0",
        "1.weight_layer",
    ]  # what multiplies by the weight itself is a layer
    assert any("number of calls: linear (1)" in note for note in view.notes)
