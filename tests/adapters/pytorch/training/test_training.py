"""What is learned: quantization-aware training, low-rank adapters, block reconstruction,
distillation."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.capture.blocks import blocks_of
from octavo.adapters.pytorch.session import TorchSession
from octavo.core.contract.adapter import Batch, OpParameters
from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.training import Distillation, LowRank, Reconstruction
from octavo.core.errors import SchemeError
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice
from tests.helpers import as_opened, torch_session


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(32),
            nn.Linear(32, 64),
            nn.Linear(64, 32),
        )

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x)))) * scale


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, scale)
        return self.head(x)


def prepared(
    model: nn.Module, batches: list[Batch], *rules: Rule
) -> tuple[TorchSession, Recipe, dict[str, OpParameters]]:
    session = torch_session(model, batches[0])
    opened = as_opened(session)
    space = build_space(opened, rules)
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    realizer.calibrate(batches)
    recipe = space.recipe(space.first())
    return session, recipe, realizer.parameters(recipe)


def stack() -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    return Stack().eval(), [(torch.randn(8, 4, 32),) for _ in range(4)]


TWO_BITS = Rule(
    types="linear",
    mode="weight_only",
    weight={"dtype": "uint2", "granularity": "group:32"},
)


def error(
    session: TorchSession,
    recipe: Recipe,
    parameters: dict[str, OpParameters],
    batches: list[Batch],
) -> float:
    quantized, reference = session.apply(recipe, parameters), session.reference()
    return float(
        np.mean(
            [((quantized.run(b)[0] - reference.run(b)[0]) ** 2).mean() for b in batches]
        )
    )


def test_block_reconstruction_lowers_the_error_of_the_outputs() -> None:
    model, batches = stack()
    session, recipe, start = prepared(
        model, batches, TWO_BITS, Rule(ops="head", keep="float")
    )
    assert blocks_of(session.capture.root, session.capture.layers.values()) == [
        "layers.0",
        "layers.1",
    ]
    learned = session.training().reconstruct(
        start, batches, Reconstruction(iterations=60, half=False)
    )
    assert error(session, recipe, learned, batches) < 0.8 * error(
        session, recipe, start, batches
    )


def test_distillation_lowers_the_error_of_the_outputs() -> None:
    model, batches = stack()
    session, recipe, start = prepared(model, batches, TWO_BITS)
    learned = session.training().distill(
        start, batches, Distillation(steps=60, half=False)
    )
    assert error(session, recipe, learned, batches) < 0.9 * error(
        session, recipe, start, batches
    )


@pytest.mark.parametrize("learn", ["reconstruct", "distill"])
def test_learning_changes_neither_its_start_nor_the_model(learn: str) -> None:
    model, batches = stack()
    session, recipe, start = prepared(
        model, batches, TWO_BITS, Rule(ops="head", keep="float")
    )
    scales = {
        n: p.weight.params.scale.clone()
        for n, p in start.items()
        if p.weight is not None
    }
    before = error(session, recipe, start, batches)
    asks = [p.requires_grad for p in model.parameters()]
    getattr(session.training(), learn)(start, batches)
    assert all(
        torch.equal(start[n].weight.params.scale, scale) for n, scale in scales.items()
    )  # type: ignore[union-attr]
    assert error(session, recipe, start, batches) == before
    assert [p.requires_grad for p in model.parameters()] == asks


def test_a_descent_that_does_harm_is_taken_back() -> None:
    model, batches = stack()
    session, recipe, start = prepared(
        model, batches, TWO_BITS, Rule(ops="head", keep="float")
    )
    before = error(session, recipe, start, batches)
    wild = (
        session.training().reconstruct(
            start,
            batches,
            Reconstruction(iterations=5, rate=9.0, scale_rate=9.0, half=False),
        ),
        session.training().distill(
            start, batches, Distillation(steps=5, rate=9.0, scale_rate=9.0, half=False)
        ),
    )
    assert [error(session, recipe, learned, batches) for learned in wild] == [
        before,
        before,
    ]


def test_nothing_to_reconstruct_is_said() -> None:
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Linear(32, 32)), [(torch.randn(4, 32),)]
    session, _, start = prepared(model, batches, TWO_BITS)
    with pytest.raises(SchemeError, match="no repeated block"):
        session.training().reconstruct(start, batches)


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_training_starts_where_calibration_ended_and_converts_to_the_same_numbers(
    mode: str,
) -> None:
    torch.manual_seed(0)
    layers = (
        [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
        if mode != "weight_only"
        else []
    )
    inputs = 8 * 36 if layers else 64
    model = nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 8)
    ).eval()
    batch = (torch.randn(16, 3, 8, 8) if layers else torch.randn(16, 64),)
    rules = (
        Rule(types="linear", mode=mode),
        *((Rule(types="conv", mode=mode),) if layers else ()),
    )
    session, recipe, parameters = prepared(model, [batch], *rules)
    prepared_model = session.training().prepare_qat(recipe, parameters)
    before = session.apply(recipe, parameters).run(batch)[0]
    np.testing.assert_allclose(
        prepared_model.native(*batch).detach(), before, atol=0.03 * np.abs(before).max()
    )
    own = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.Adam(prepared_model.native.parameters(), lr=1e-2)
    target = torch.randn(16, 8)
    losses = []
    for _ in range(15):
        loss = nn.functional.mse_loss(prepared_model.native(*batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        expected = prepared_model.native(*batch).numpy()
    np.testing.assert_allclose(
        prepared_model.convert().run(batch)[0],
        expected,
        atol=0.04 * np.abs(expected).max(),
    )
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())


def test_a_model_of_one_layer_is_trained_and_converted() -> None:
    torch.manual_seed(0)
    model, batch = nn.Linear(32, 16).eval(), (torch.randn(4, 32),)
    session, recipe, parameters = prepared(
        model, [batch], Rule(types="linear", mode="static")
    )
    prepared_model = session.training().prepare_qat(recipe, parameters)
    with torch.no_grad():
        prepared_model.native.weight.mul_(0.5)
        expected = prepared_model.native(*batch).numpy()
    got = prepared_model.convert().run(batch)[0]
    np.testing.assert_allclose(got, expected, atol=0.04 * np.abs(expected).max())


def test_adapters_train_and_their_base_does_not() -> None:
    torch.manual_seed(0)
    model, batch = (
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)),
        (torch.randn(16, 64),),
    )
    rule = Rule(
        types="linear",
        mode="weight_only",
        weight={"dtype": "nf4", "scale_dtype": "uint8"},
    )
    session, recipe, parameters = prepared(model, [batch], rule)
    candidate = session.apply(recipe, parameters)
    adapted = session.training().add_low_rank(candidate, LowRank(rank=4))
    before = candidate.run(batch)[0]
    np.testing.assert_allclose(adapted(*batch).detach(), before, rtol=1e-5, atol=1e-6)
    optimizer = torch.optim.Adam(
        [p for p in adapted.parameters() if p.requires_grad], lr=1e-2
    )
    target, losses = torch.randn(16, 8), []
    for _ in range(30):
        loss = nn.functional.mse_loss(adapted(*batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    np.testing.assert_array_equal(candidate.run(batch)[0], before)
    with pytest.raises(SchemeError, match="no weight-only linear layer"):
        session.training().add_low_rank(session.reference())


def test_only_the_named_ops_get_an_update() -> None:
    model, batches = stack()
    session, recipe, parameters = prepared(model, batches, TWO_BITS)
    candidate = session.apply(recipe, parameters)
    some = LowRank(rank=2, alpha=4.0, ops=("head", "layers.1.up"))
    adapted = session.training().add_low_rank(candidate, some)
    trained = {
        n.rpartition(".")[0] for n, p in adapted.named_parameters() if p.requires_grad
    }
    assert trained == {"head", "layers.1.up"}
    assert adapted.head.gain == 2.0
    with pytest.raises(SchemeError, match="no weight-only linear layer"):
        session.training().add_low_rank(candidate, LowRank(ops=("layers.0.norm",)))


@pytest.mark.parametrize("learn", ["reconstruct", "distill"])
def test_what_is_learned_after_a_transform_is_of_the_layers_that_it_left(
    learn: str,
) -> None:
    model, batches = stack()
    opened = as_opened(torch_session(model, batches[0]))
    turned = (PartChoice(kind="hadamard"),)
    rules = [TWO_BITS, Rule(ops="head", keep="float")]
    space = build_space(opened, rules, transforms=turned)
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    realizer.calibrate(batches)
    schemes = space.recipe(space.first()).schemes
    recipe = Recipe(schemes, turned, "torch")
    session = realizer.session(turned)
    assert isinstance(session, TorchSession)
    # Layers behind a residual turn their input themselves.
    assert session.capture.factors
    start = realizer.parameters(recipe)
    learned = getattr(session.training(), learn)(start, batches)
    assert error(session, recipe, learned, batches) < 0.95 * error(
        session, recipe, start, batches
    )


def test_updates_go_over_candidates_of_torch() -> None:
    model, batches = stack()
    session, _, _ = prepared(model, batches, TWO_BITS)
    with pytest.raises(SchemeError, match="a candidate of the torch backend, not str"):
        session.training().add_low_rank("a folder")  # type: ignore[arg-type]


def test_what_learns_is_imported_when_it_is_first_asked_for() -> None:
    code = """
import sys, torch, octavo
model = torch.nn.Sequential(torch.nn.Linear(32, 32))
octavo.quantize_model(model, "int8-dynamic", calibration=[(torch.randn(2, 32),)])
print(*(name for name in sys.modules if "pytorch.training" in name))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert done.stdout.split() == []
