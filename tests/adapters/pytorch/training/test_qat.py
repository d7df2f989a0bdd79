"""Quantization-aware training against the formulas of Esser et al. 2020 (LSQ), written in NumPy,
and what every kind of layer does while it is trained and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import octavo
from octavo.adapters.pytorch.training.trained_layer import (
    TrainedLayer,
    learned_step,
    positive_levels,
)
from octavo.core.errors import ModelError, SchemeError

WEIGHT = {"dtype": "int8", "granularity": "channel"}
SIGNED = {"dtype": "int8"}
UNSIGNED = {"dtype": "uint8", "symmetric": False}


def made(
    model: nn.Module, batch: tuple[Any, ...], *rules: dict[str, Any], **more: Any
) -> octavo.Quantized:
    static = {"mode": "static"}
    full = [rule if "keep" in rule else {**static, **rule} for rule in rules]
    settings = {"rules": full, **more}
    return octavo.quantize_model(model.eval(), settings, [batch])


def only_layer(module: nn.Module) -> TrainedLayer:
    (found,) = (m for m in module.modules() if isinstance(m, TrainedLayer))
    return found


def agree(module: nn.Module, *batch: Any, rtol: float = 1e-5) -> octavo.Quantized:
    """Check that what was converted computes what is trained."""
    result = octavo.convert(module)
    with torch.no_grad():
        wanted, got = module(*batch), result.model(*batch)
    limit = rtol * wanted.abs().max().item()
    torch.testing.assert_close(got, wanted, rtol=0, atol=limit)
    return result


def steps(module: nn.Module, *batch: Any, count: int = 3) -> None:
    torch.manual_seed(2)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-2)
    wanted = torch.randn_like(module(*batch))
    for _ in range(count):
        nn.functional.mse_loss(module(*batch), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()


# The formulas


def lsq(
    v: np.ndarray, s: np.ndarray, zero: np.ndarray, low: int, high: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return v^ (eqs. 1 and 2), dv^/dv (the straight-through estimator), dv^/ds (eq. 3); a zero
    point moves both ends of the range."""
    bottom, top = low - zero, high - zero
    ratio = v / s
    inside = (ratio > bottom) & (ratio < top)
    hat = np.clip(np.round(ratio), bottom, top) * s
    to_step = np.where(
        inside, np.round(ratio) - ratio, np.where(ratio <= bottom, bottom, top)
    )
    return hat, inside.astype(float), to_step


@pytest.mark.parametrize("source", [SIGNED, UNSIGNED])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_gradients_are_those_of_the_paper(
    source: dict[str, Any], granularity: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 6))
    x = torch.randn(4, 10) + 0.3
    weight = {"dtype": "int8", "granularity": granularity}
    module = octavo.prepare_qat(
        made(model, (x,), {"types": "linear", "weight": weight, "input": source})
    )
    layer = only_layer(module)
    assert layer.input_scale is not None
    with torch.no_grad():
        # Smaller steps: some values lie outside the range.
        layer.step.mul_(0.6)
        layer.input_scale.mul_(0.6)
    given = torch.randn(4, 6)
    (module(x) * given).sum().backward()

    w = layer.weight.detach().numpy().astype(np.float64)
    s = layer.step.detach().numpy().astype(np.float64).reshape(-1, 1)
    # Processors whose 8-bit products saturate take weights of 7 bits.
    most = 63 if layer.spec.reduce_range else 127
    w_hat, w_inside, w_step = lsq(w, s, np.zeros(1), -most, most)
    s_x = layer.input_scale.item()
    zero = layer.input_zero.numpy()
    low, high = (-127, 127) if source is SIGNED else (0, 255)
    x_hat, x_inside, x_step = lsq(x.numpy().astype(np.float64), s_x, zero, low, high)
    assert 0.5 < w_inside.mean() < 1
    assert 0.5 < x_inside.mean() < 1
    g = given.numpy().astype(np.float64)
    to_w, to_x = g.T @ x_hat, g @ w_hat
    with torch.no_grad():
        np.testing.assert_allclose(
            module(x),
            x_hat @ w_hat.T + layer.bias.detach().numpy(),
            rtol=1e-5,
            atol=1e-5,  # type: ignore[union-attr]
        )
    np.testing.assert_allclose(layer.weight.grad, to_w * w_inside, rtol=1e-4, atol=1e-5)
    # One step serves N weights: those of a channel, or of the layer.
    n = 10 if granularity == "channel" else 60
    for_step = (to_w * w_step) / np.sqrt(n * most)
    wanted = for_step.sum(1) if granularity == "channel" else for_step.sum()
    np.testing.assert_allclose(layer.step.grad, wanted, rtol=1e-4, atol=1e-6)
    wanted = (to_x * x_step).sum() / np.sqrt(10 * high)
    np.testing.assert_allclose(layer.input_scale.grad, wanted, rtol=1e-4)
    np.testing.assert_allclose(layer.bias.grad, g.sum(0), rtol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("scales", ["float16", "bfloat16", "uint8"])
@pytest.mark.parametrize("dtype", ["int4", "uint3"])
def test_steps_are_those_that_are_stored(dtype: str, scales: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64)
    weight = {"dtype": dtype, "granularity": "group:32", "scale_dtype": scales}
    rule = {"types": "linear", "mode": "weight_only", "weight": weight}
    module = octavo.prepare_qat(made(nn.Sequential(nn.Linear(64, 8)), (x,), rule))
    layer = only_layer(module)
    with torch.no_grad():
        layer.step.mul_(torch.rand(8, 2) + 0.5)
    module(x).square().sum().backward()
    assert layer.step.grad is not None
    assert (layer.step.grad != 0).all()
    converted = octavo.convert(module)
    with torch.no_grad():
        trained = module(x)
    np.testing.assert_allclose(
        converted.model(x).numpy(), trained.numpy(), rtol=1e-4, atol=1e-5
    )
    assert layer.spec.scale_dtype == scales


@pytest.mark.parametrize(
    ("dtype", "symmetric", "low", "high", "above"),
    [
        ("int4", True, -8, 7, 7),
        ("uint4", False, 0, 15, 15),
        ("int2", True, -2, 1, 1),
        ("uint3", False, 0, 7, 7),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_groups_have_steps_of_their_own(
    dtype: str, symmetric: bool, low: int, high: int, above: int, kind: str
) -> None:
    torch.manual_seed(0)
    float_layer: nn.Module = nn.Linear(64, 3)
    x = torch.randn(5, 64)
    if kind == "conv":
        # Its features are its other axes, flattened: (4, 4, 4) are two groups of 32.
        float_layer, x = nn.Conv2d(4, 3, 4), torch.randn(5, 4, 4, 4)
    weight = {
        "dtype": dtype,
        "symmetric": symmetric,
        "granularity": "group:32",
        "scale_dtype": "float32",
    }
    rule = {"types": kind, "mode": "weight_only", "weight": weight}
    module = octavo.prepare_qat(made(nn.Sequential(float_layer), (x,), rule))
    layer = only_layer(module)
    assert layer.step.shape == (3, 2)
    with torch.no_grad():
        layer.step.mul_(torch.tensor([[0.7, 1.05], [0.8, 1.1], [0.9, 0.6]]))
    given = torch.randn(5, 3)
    (module(x).reshape(5, 3) * given).sum().backward()
    w = layer.weight.detach().numpy().astype(np.float64).reshape(3, 2, 32)
    s = layer.step.detach().numpy().astype(np.float64)[..., None]
    hat, inside, to_step = lsq(w, s, layer.zero.numpy()[..., None], low, high)
    to_w = (given.numpy().T @ x.numpy().reshape(5, 64)).reshape(3, 2, 32)
    with torch.no_grad():
        wanted = (
            x.numpy().reshape(5, 64) @ hat.reshape(3, 64).T
            + layer.bias.detach().numpy()
        )  # type: ignore[union-attr]
        np.testing.assert_allclose(
            module(x).reshape(5, 3), wanted, rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(
        layer.weight.grad.reshape(3, 2, 32),
        to_w * inside,
        rtol=1e-4,
        atol=1e-5,  # type: ignore[union-attr]
    )
    wanted = (to_w * to_step).sum(-1) / np.sqrt(32 * above)
    np.testing.assert_allclose(layer.step.grad, wanted, rtol=1e-4, atol=1e-6)
    agree(module, x, rtol=0.01)


def test_the_gradient_stops_where_the_range_ends() -> None:
    v = torch.tensor([-9.0, -8.0, -7.8, 0.3, 6.9, 7.0, 7.3, 9.0], requires_grad=True)
    s = torch.tensor(1.0, requires_grad=True)
    spec = octavo.QuantSpec(dtype="int4")
    hat = learned_step(v, s, torch.tensor(0.0), spec)
    assert hat.tolist() == [-8, -8, -8, 0, 7, 7, 7, 7]
    hat.backward(torch.arange(1.0, 9.0))
    assert v.grad is not None
    assert s.grad is not None
    assert v.grad.tolist() == [0, 0, 3, 4, 5, 0, 0, 0]
    wanted = -8 * 1 - 8 * 2 - 0.2 * 3 - 0.3 * 4 + 0.1 * 5 + 7 * (6 + 7 + 8)
    np.testing.assert_allclose(s.grad, wanted, rtol=1e-5)


def test_inputs_are_counted_by_the_features_of_one_sample() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    x = torch.randn(4, 2, 6, 6)
    module = octavo.prepare_qat(
        made(model, (x,), {"types": "conv", "weight": WEIGHT, "input": SIGNED})
    )
    layer = only_layer(module)
    assert layer.input_scale is not None
    with torch.no_grad():
        layer.input_scale.mul_(0.5)
    leaf = x.clone().requires_grad_()
    module(leaf).sum().backward()
    s = layer.input_scale.item()
    _, inside, to_step = lsq(x.numpy(), s, 0, -127, 127)  # type: ignore[arg-type]
    # The same layer in float, of the rounded values, has their gradient.
    hat = (torch.round(x / s).clamp(-127, 127) * s).requires_grad_()
    y = nn.functional.conv2d(hat, layer.quantized_weight().detach())
    (to_x,) = torch.autograd.grad(y.sum(), hat)
    np.testing.assert_allclose(leaf.grad, to_x.numpy() * inside, rtol=1e-4, atol=1e-5)
    wanted = (to_x.numpy() * to_step).sum() / np.sqrt(2 * 6 * 6 * 127)
    np.testing.assert_allclose(layer.input_scale.grad, wanted, rtol=1e-3)


def test_one_sample_without_a_batch_has_as_many_features() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 10)
    rule = {"types": "linear", "weight": WEIGHT, "input": SIGNED}
    module = octavo.prepare_qat(made(nn.Sequential(nn.Linear(10, 6)), (x,), rule))
    scale = only_layer(module).input_scale
    assert scale is not None
    found = []
    for given in (x, x[0]):
        module.zero_grad()
        module(given).square().sum().backward()
        assert scale.grad is not None
        found.append(scale.grad.clone())
    torch.testing.assert_close(found[0], found[1])
    assert module(x[:0]).shape == (0, 6)


@pytest.mark.parametrize(
    ("dtype", "symmetric", "levels"),
    [
        ("int8", True, 127),
        ("int2", True, 1),
        ("uint8", False, 255),
        ("uint8", True, 127),
    ],
)
def test_the_levels_of_the_paper(dtype: str, symmetric: bool, levels: int) -> None:
    spec = octavo.QuantSpec(dtype=dtype, symmetric=symmetric)
    assert positive_levels(spec) == levels


# Where steps begin


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_the_papers_start(granularity: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight[2] = 0
    x = torch.randn(8, 10)
    weight = {"dtype": "int4", "granularity": granularity}
    base = made(model, (x,), {"types": "linear", "weight": weight, "input": UNSIGNED})
    module = octavo.prepare_qat(base, start="lsq")
    first, second = (m for m in module.modules() if isinstance(m, TrainedLayer))
    sizes = np.abs(model[0].weight.detach().numpy())
    means = sizes.mean(1) if granularity == "channel" else sizes.mean()
    wanted = 2 * means / np.sqrt(7)
    if granularity == "channel":
        assert wanted[2] == 0
        wanted[2] = 1.0
    np.testing.assert_allclose(first.step.detach(), wanted, rtol=1e-5)
    # The second layer's inputs, which ReLU left positive, are met as the quantized first gives
    # them; the first one's have a zero point within their range, and begin at calibration's.
    with torch.no_grad():
        hidden = torch.relu(first(x))
    assert second.input_scale is not None
    assert first.input_scale is not None
    np.testing.assert_allclose(
        second.input_scale.item(), 2 * hidden.mean().item() / np.sqrt(255), rtol=1e-5
    )
    given = base.candidate.decided()["0"].inputs[0]
    assert given is not None
    assert torch.equal(first.input_scale.detach(), given.scale)
    assert not first.looks
    assert not second.looks


def test_asymmetric_weights_begin_at_calibrations_range() -> None:
    torch.manual_seed(0)
    weight = {"dtype": "uint4", "symmetric": False, "granularity": "group:32"}
    rule = {"types": "linear", "mode": "weight_only", "weight": weight}
    base = made(nn.Sequential(nn.Linear(64, 4)), (torch.randn(2, 64),), rule)
    start = base.candidate.decided()["0"].weight
    assert start is not None
    for name in ("calibration", "lsq"):
        layer = only_layer(octavo.prepare_qat(base, start=name))  # type: ignore[arg-type]
        assert torch.equal(layer.step.detach(), start.params.scale)
        assert torch.equal(layer.zero, start.params.zero_point.float())


# Steps stay positive


def test_a_step_that_was_learned_across_zero_is_converted_as_it_was_trained() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 10)
    weight = {"dtype": "int4", "granularity": "channel"}
    rule = {"types": "linear", "weight": weight, "input": UNSIGNED}
    module = octavo.prepare_qat(made(nn.Sequential(nn.Linear(10, 6)), (x,), rule))
    layer = only_layer(module)
    module(x).square().sum().backward()
    assert layer.step.grad is not None
    assert layer.input_scale is not None
    before, upwards = module(x).detach(), layer.step.grad.clone()
    with torch.no_grad():
        layer.step.neg_()
        layer.input_scale.neg_()
    module.zero_grad()
    module(x).square().sum().backward()
    torch.testing.assert_close(module(x).detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(layer.step.grad, -upwards)
    agree(module, x)
    with torch.no_grad():
        layer.step[1] = 0
    agree(module, x)
    module.zero_grad()
    module(x).square().sum().backward()
    # It finds its way out again.
    assert layer.step.grad.isfinite().all()
    assert layer.step.grad[1] != 0


# Every kind of layer


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.turned = Conv1D(24, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.turned(x)


def tables() -> nn.Module:
    return nn.Sequential(nn.Embedding(20, 32), nn.Linear(32, 8))


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, padding=1)),
        lambda: torch.randn(2, 4, 5, 5),
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, stride=2, bias=False)),
        lambda: torch.randn(2, 8, 7, 7),
    ),
    "one axis, padded alike": (
        lambda: nn.Sequential(nn.Conv1d(4, 8, 4, padding="same", dilation=2)),
        lambda: torch.randn(2, 4, 9),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2)),
        lambda: torch.randn(2, 4, 5, 5),
    ),
    "turned": (Turned, lambda: torch.randn(2, 3, 32)),
    "norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        ),
        lambda: torch.randn(2, 3, 6, 6),
    ),
}


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_converted_as_it_was_trained(
    kind: str, mode: str
) -> None:
    torch.manual_seed(0)
    model, inputs = KINDS[kind]
    model, x = model(), inputs()
    base = octavo.quantize_model(model.eval(), f"int8-{mode}", [(x,)])
    module = octavo.prepare_qat(base)
    layer = only_layer(module)
    with torch.no_grad():
        torch.testing.assert_close(module(x), base.model(x), rtol=1e-4, atol=1e-4)
    before = layer.weight.detach().clone()
    steps(module, x)
    assert not torch.equal(layer.weight, before)
    result = agree(module, x)
    assert dict(result.ledger) == dict(base.ledger)


def test_a_frozen_norm_learns_as_a_part_of_its_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    norm = model[1]
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.uniform_(0.5, 2)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 3, 6, 6)
    module = octavo.prepare_qat(model.eval(), "int8-static", [(x,)])
    first = next(m for m in module.modules() if isinstance(m, TrainedLayer))
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    torch.testing.assert_close(first.weight, model[0].weight * gain.view(-1, 1, 1, 1))
    torch.testing.assert_close(
        first.bias, norm.bias + (model[0].bias - norm.running_mean) * gain
    )
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    statistics = norm.running_mean.clone()
    module.train()
    steps(module, x)
    assert torch.equal(norm.running_mean, statistics)
    agree(module.eval(), x)


def test_what_stays_float_is_trained_and_taken_over_with_its_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm1d(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    x = torch.randn(16, 6) + 2
    base = made(
        model,
        (x,),
        {"ops": "3", "weight": WEIGHT, "input": UNSIGNED},
        {"ops": "1", "keep": "float"},
    )
    module = octavo.prepare_qat(base).train()
    steps(module, x)
    module.eval()
    result = agree(module, x)
    trained = result.model.get_submodule("0")
    assert not torch.equal(trained.running_mean, model[0].running_mean)
    assert not torch.equal(result.model.get_submodule("1").weight, model[1].weight)
    assert model[0].running_mean.sum() == 0


@pytest.mark.parametrize("rows", [4, 1, 0])
def test_tokens_have_ranges_of_their_own_however_many_there_are(rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16))
    x = torch.randn(3, 5, 32)
    token = {"dtype": "int8", "granularity": "token"}
    rule = {"types": "linear", "mode": "dynamic", "weight": WEIGHT, "input": token}
    module = octavo.prepare_qat(made(model, (x,), rule))
    other = torch.randn(2, rows, 32) * torch.logspace(-2, 2, 2)[:, None, None]
    other[:, -1:] = 0
    steps(module, x)
    result = octavo.convert(module)
    with torch.no_grad():
        torch.testing.assert_close(
            result.model(other), module(other), rtol=1e-4, atol=1e-4
        )


class Tied(nn.Module):
    """A table whose weight is the last layer's, as in language models."""

    def __init__(self, *, head_first: bool = False) -> None:
        super().__init__()
        if head_first:
            self.head = nn.Linear(32, 20, bias=False)
        self.table = nn.Embedding(20, 32)
        if not head_first:
            self.head = nn.Linear(32, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids))


IDS = torch.arange(12).view(2, 6)


@pytest.mark.parametrize("head_first", [False, True])
def test_a_weight_that_a_float_table_shares_stays_one_while_it_is_trained(
    head_first: bool,
) -> None:
    torch.manual_seed(0)
    model = Tied(head_first=head_first)
    base = made(
        model,
        (IDS,),
        {"types": "linear", "mode": "dynamic", "weight": WEIGHT, "input": UNSIGNED},
        {"types": "embedding", "keep": "float"},
    )
    module = octavo.prepare_qat(base)
    assert module.head.weight is module.table.weight
    steps(module, IDS)
    result = agree(module, IDS)
    assert not torch.equal(model.table.weight, module.table.weight)
    assert torch.equal(result.model.table.weight, module.table.weight)


def test_layers_of_one_quantized_weight_learn_one_and_are_stored_once() -> None:
    torch.manual_seed(0)
    weight = {"dtype": "int8", "granularity": "channel"}
    rule = {"types": ["linear", "embedding"], "mode": "weight_only", "weight": weight}
    base = made(Tied(), (IDS,), rule)
    module = octavo.prepare_qat(base)
    assert module.head.weight is module.table.weight
    assert module.head.step is module.table.step
    steps(module, IDS)
    result = agree(module, IDS)
    decided = result.candidate.decided()
    assert decided["head"].weight is decided["table"].weight
    measured, before = (q.compare(measure=False).size.value for q in (result, base))
    assert measured <= 1.01 * before


def test_a_layer_that_is_called_twice_is_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = self.again = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(torch.relu(self.layer(x)))

    torch.manual_seed(0)
    x = torch.randn(4, 8)
    module = octavo.prepare_qat(Twice(), "int8-dynamic", [(x,)])
    assert module.layer is module.again
    steps(module, x)
    agree(module, x)


def test_layers_of_16_bits_are_trained_in_32_and_compute_in_their_own_type() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 32), nn.Linear(32, 8)).bfloat16()
    module = octavo.prepare_qat(model.eval(), "int8-dynamic", [(IDS,)])
    assert module(IDS).dtype == torch.bfloat16
    layers = [m for m in module.modules() if isinstance(m, TrainedLayer)]
    assert [layer.weight.dtype for layer in layers] == [torch.float32] * 2
    steps(module, IDS)
    agree(module, IDS, rtol=0.02)


def test_what_models_look_at_and_hook_on_a_layer_is_there() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    seen: list[torch.Size] = []
    model[0].register_forward_hook(lambda m, given, y: seen.append(y.shape))
    x = torch.randn(3, 8)
    rule = {"types": "linear", "mode": "dynamic", "weight": WEIGHT, "input": UNSIGNED}
    module = octavo.prepare_qat(made(model, (x,), rule))
    assert module[0].in_features == 8
    assert module[0].weight.shape == (4, 8)
    seen.clear()
    module(x)
    assert seen == [torch.Size([3, 4])]


def test_layers_that_rescale_their_input_do_so_in_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(8, 16) * torch.logspace(-1, 1, 16)
    token = {"dtype": "int8", "granularity": "token"}
    rules = [
        {"ops": "0", "keep": "float"},
        {"ops": "2", "mode": "dynamic", "weight": WEIGHT, "input": token},
    ]
    for transforms in (["smoothquant"], ["hadamard"]):
        check_rescaled(made(model, (x,), *rules, transforms=transforms), x)


def check_rescaled(base: octavo.Quantized, x: torch.Tensor) -> None:
    """Check that training begins at what was quantized, and is converted as it was trained."""
    module = octavo.prepare_qat(base)
    with torch.no_grad():
        torch.testing.assert_close(module(x), base.model(x), rtol=1e-4, atol=1e-4)
    steps(module, x)
    agree(module, x, rtol=1e-4)


class Fork(nn.Module):
    """Two layers of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) + self.right(x)


def test_float_layers_that_rescale_their_input_do_so_in_training() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 16) * torch.logspace(-1, 1, 16)
    token = {"dtype": "int8", "granularity": "token"}
    rules = [
        {"ops": "left", "keep": "float"},
        {"ops": "right", "mode": "dynamic", "weight": WEIGHT, "input": token},
    ]
    base = made(Fork(), (x,), *rules, transforms=["hadamard"])
    assert set(base.candidate.factors) == {"left", "right"}
    check_rescaled(base, x)


# What is not trained


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)


@pytest.mark.parametrize(
    ("model", "batch", "scheme", "message"),
    [
        (Calls, torch.randn(2, 8), "int8-dynamic", "is a functional call"),
        (
            lambda: nn.Sequential(nn.Linear(64, 8)),
            torch.randn(2, 64),
            "nf4-weight-only",
            r"op '0' \(linear, \[weight_only .*are trained, with integer weights",
        ),
        (
            lambda: nn.Sequential(nn.Linear(8, 8)),
            torch.randn(2, 8),
            "bfloat16",
            "with integer weights",
        ),
        (
            lambda: nn.LSTM(8, 8),
            torch.randn(3, 2, 8),
            "int8-dynamic",
            r"\(lstm, .*layers of the types linear, conv, conv_transpose, embedding are trained",
        ),
    ],
)
def test_what_is_not_trained_is_refused_with_its_name(
    model: Callable[[], nn.Module], batch: torch.Tensor, scheme: str, message: str
) -> None:
    base = octavo.quantize_model(model().eval(), scheme, [(batch,)])
    with pytest.raises(SchemeError, match=message):
        octavo.prepare_qat(base)


def test_another_model_than_the_prepared_one_is_not_converted() -> None:
    x = torch.randn(4, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).eval()
    module = octavo.prepare_qat(model, "int8-dynamic", [(x,)])
    module[1] = nn.Linear(8, 2)
    with pytest.raises(ModelError, match="no trained layer at '1'"):
        octavo.convert(module)
