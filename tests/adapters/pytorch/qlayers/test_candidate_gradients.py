"""Gradients through quantized layers follow those of the float model, also where some layers stay
float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from tests.helpers import as_opened, torch_session

SOME = ("down", "second", "body", "down_proj", "up_proj")
Tensor = torch.Tensor


class Residual(nn.Module):
    """Layers with and without a branch around them: what a layer drops, the branch
    would carry on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(64),
            nn.Linear(64, 128),
            nn.Linear(128, 64),
        )
        self.out = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        y: Tensor = self.out(x)
        return y


class Branching(Residual):
    """The same, where nothing can be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 1e9 else super().forward(x)


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(4, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1),
        )
        self.norm, self.up = nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.norm(self.second(y)) + y)
        z: Tensor = self.up(y)
        return z


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.body(x)[0])
        return y


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (300, 64)),  # more rows than go through the kernel for few
    "few rows": (Residual, (5, 64)),
    "modules": (Branching, (300, 64)),
    "image": (Image, (2, 4, 12, 12)),
    "recurrent": (Recurrent, (3, 7, 16)),
}


def candidate_of(model: nn.Module, scheme: str, batch: Any, mixed: bool) -> Any:
    """Return a quantized model; a mixed one has some of its layers in float."""
    session = torch_session(model, batch)
    opened = as_opened(session)
    space = build_space(opened)
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    realizer.calibrate([batch])
    recipe = preset_recipe(scheme, space, opened)
    if mixed:
        some = {
            name: own for name, own in recipe.schemes.items() if name.endswith(SOME)
        }
        assert 0 < len(some) < len(recipe.schemes)
        recipe = replace(recipe, schemes=some)
    candidate = realizer.candidate(recipe)
    return candidate.native


def gradient(model: Any, x: Tensor) -> Tensor:
    given = x.clone().requires_grad_()
    y = model(given)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape).sin()
    (found,) = torch.autograd.grad((y * weights).sum(), given)
    result: Tensor = found.flatten()
    return result


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static", "int8-weight-only"])
@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_of_the_inputs_are_the_float_models(
    name: str, scheme: str, mixed: bool
) -> None:
    torch.manual_seed(0)
    make, sizes = MODELS[name]
    model, x = make().eval(), torch.randn(*sizes)
    if mixed and (scheme, name) == ("int8-static", "recurrent"):
        return  # a recurrent layer has no static scheme
    quantized = candidate_of(model, scheme, (x,), mixed)
    expected, got = gradient(model, x), gradient(quantized, x)
    assert float(nn.functional.cosine_similarity(got, expected, dim=0)) > 0.985
    # The values are those that a run without gradients gives.
    with torch.no_grad():
        plain = quantized(x)
    again = quantized(x.clone().requires_grad_()).detach()
    spread = float((again - plain).norm() / plain.norm())
    assert spread < 0.01


def test_a_static_range_clips_the_gradient_as_it_clips_the_value() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 32)).eval(), torch.rand(4, 32)
    quantized = candidate_of(model, "int8-static", (x,), mixed=False)
    far = torch.cat([x[:, :16], x[:, 16:] + 100], 1)
    found = gradient(quantized, far).view(4, 32)
    assert bool((found[:, 16:] == 0).all())
    assert bool((found[:, :16] != 0).any())


def test_a_language_model_with_some_dynamic_layers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = {"input_ids": torch.arange(24).view(2, 12)}
    quantized = candidate_of(model, "int8-dynamic", ids, mixed=True)
    x = torch.randn(2, 12, 32)

    def logits(of: Any) -> Any:
        return lambda given: of(inputs_embeds=given).logits

    expected, got = gradient(logits(model), x), gradient(logits(quantized), x)
    assert float(nn.functional.cosine_similarity(got, expected, dim=0)) > 0.99
