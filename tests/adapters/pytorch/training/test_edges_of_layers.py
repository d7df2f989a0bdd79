"""Layers in training at their edges: what is refused, how steps go, what a seed decides."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.training import (
    distillation,
    learned_linear,
    reconstruction,
)
from octavo.adapters.pytorch.training.block_descent import (
    _adam,
    _mover,
)
from octavo.adapters.pytorch.training.learned_linear import (
    LearnedLinear,
    install_learned,
    multiplies_in_half,
    scale_groups,
)
from octavo.adapters.pytorch.training.qat import (
    TorchQatModel,
    _float_tensors,
    _layer_at,
    _seeded,
)
from octavo.adapters.pytorch.training.reconstruction import reconstruct
from octavo.adapters.pytorch.training.trained_layer import (
    TrainedLayer,
    _features,
    _without_tensors,
    learned_step,
)
from octavo.core.contract.training import Distillation, Reconstruction
from octavo.core.errors import DataError, ModelError, SchemeError
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

INT4 = QuantSpec(dtype="int4", granularity="channel")


def learned(seed: int = 0, repair: Any = None) -> LearnedLinear:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=generator)
    scale = weight.abs().amax(1) / 7
    codes = torch.round(weight / scale[:, None]).to(torch.int8)
    # Some codes that are not the nearest.
    codes[:, 0] = (codes[:, 0] + 1).clamp(-8, 7)
    params = QuantParams(scale, torch.zeros(4, dtype=torch.int32), INT4, 0)
    start = QuantizedTensor(codes, params, None, repair)
    return LearnedLinear(weight, None, start, transposed=False)


# Quantization-aware training


def draws(module: nn.Module) -> None:
    module.drawn = torch.rand(3)


def test_a_seed_decides_what_training_draws() -> None:
    torch.manual_seed(77)
    before = torch.get_rng_state()
    owner: Any = SimpleNamespace(module=nn.Identity())
    with torch.no_grad():
        found = TorchQatModel.train(owner, draws)
    assert found is owner.module
    torch.testing.assert_close(torch.get_rng_state(), before)
    first = found.drawn
    torch.manual_seed(0)
    torch.testing.assert_close(first, torch.rand(3))
    TorchQatModel.train(owner, draws, 5)
    torch.manual_seed(5)
    torch.testing.assert_close(owner.module.drawn, torch.rand(3))
    other = nn.Linear(1, 1)
    assert _seeded(lambda module: other, 0, owner.module) is other
    assert TorchQatModel.train(owner, lambda module: other) is other
    enabled: list[bool] = []
    with torch.no_grad():
        _seeded(lambda module: enabled.append(torch.is_grad_enabled()), 0, other)
    assert enabled == [True]


def test_training_elsewhere_is_given_all_and_answers_a_module() -> None:
    owner: Any = SimpleNamespace(module=nn.Identity())
    given: list[Any] = []

    def run(*arguments: Any) -> Any:
        given.append(arguments)
        return arguments[0](*arguments[1:])

    assert TorchQatModel.train(owner, draws, 3, run) is owner.module
    assert given == [(_seeded, draws, 3, owner.module)]
    with pytest.raises(SchemeError) as raised:
        TorchQatModel.train(owner, lambda module: 5)
    assert str(raised.value) == (
        "train_fn returned int; let it return None, or the module that it was given"
    )


def empty_layer() -> TrainedLayer:
    layer = TrainedLayer.__new__(TrainedLayer)
    nn.Module.__init__(layer)
    return layer


def test_a_trained_layer_is_found_at_its_path() -> None:
    layer = empty_layer()
    root = nn.Sequential(nn.Identity(), layer)
    assert _layer_at(root, "1") is layer
    # A model that is a single layer was replaced by it.
    assert _layer_at(layer, "fc") is layer
    for path in ("0", "fc"):
        with pytest.raises(ModelError) as raised:
            _layer_at(root, path)
        assert str(raised.value) == (
            f"the module has no trained layer at {path!r}: convert the one that prepare_qat "
            "returned, or a copy of it"
        )


def test_what_stays_float_is_found_by_its_first_name() -> None:
    root = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    root[1].weight = root[0].weight
    trained = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    found = _float_tensors(trained, root)
    assert list(found) == ["0.weight"] and found["0.weight"] is trained[0].weight
    layer = empty_layer()
    layer.weight = nn.Parameter(torch.ones(2, 2))
    shared = nn.Sequential(layer, layer)
    assert _float_tensors(shared, root) == {}
    assert _float_tensors(layer, root) == {}


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_twin_of_a_layer_holds_no_numbers(has_bias: bool, given: bool) -> None:
    module = nn.Linear(3, 2, bias=has_bias)
    module.register_forward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda *_: None)
    twin: Any = _without_tensors(module, torch.ones(2) if given else None)
    assert not twin._forward_hooks and not twin._forward_pre_hooks
    assert len(module._forward_hooks) == 1
    assert twin.weight.is_meta and twin.weight.shape == (2, 3)
    assert set(twin._parameters) == {"weight", "bias"}
    if not (has_bias or given):
        assert twin.bias is None
        return
    assert isinstance(twin.bias, nn.Parameter)
    assert twin.bias.is_meta and twin.bias.shape == (2,)


def test_a_zero_point_moves_both_ends() -> None:
    spec = QuantSpec(dtype="uint3", symmetric=False)
    v = torch.tensor([-9.0, -1.2, 0.4, 3.1, 9.0])
    found = learned_step(v, torch.ones(1), torch.tensor([2.0]), spec)
    assert found.tolist() == [-2, -1, 0, 3, 5]


# Learned layers


def test_layers_begin_at_their_starts_codes() -> None:
    layer = learned()
    ratio = (layer.weight / layer.start_scale[:, None]).numpy()
    near = layer.nearby().numpy()
    centre = layer.centre.numpy()
    expected = centre + np.clip(ratio - centre, -0.49, 0.49)
    np.testing.assert_allclose(near, expected, rtol=1e-6)
    assert (np.round(near) == centre).all() and (np.round(ratio) != centre).any()
    on_grid = layer.start_scale[:, None] * layer.centre
    torch.testing.assert_close(layer.quantized_weight().detach(), on_grid)


def test_a_repair_is_added_to_the_rounded_weight() -> None:
    matrix = 0.1 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    layer = learned(repair=SimpleNamespace(matrix=lambda: matrix))
    on_grid = layer.start_scale[:, None] * layer.centre
    torch.testing.assert_close(layer.quantized_weight().detach(), on_grid + matrix)


def test_scales_move_in_steps_of_their_own_size() -> None:
    layers = [learned(0), learned(1)]
    groups = scale_groups(layers, 0.1)
    assert [set(group) for group in groups] == [{"params", "lr"}] * 2
    for layer, group in zip(layers, groups, strict=True):
        assert group["params"][0] is layer.scale
        assert group["lr"] == pytest.approx(
            0.1 * float(layer.scale.detach().abs().mean())
        )


def test_learned_layers_know_which_way_weights_lie() -> None:
    asked: list[Any] = []
    old = nn.Linear(6, 4)
    twin = nn.Sequential(old)
    start: Any = SimpleNamespace(weight="start")

    def made(weight: Any, bias: Any, given: Any, *, transposed: bool) -> nn.Module:
        asked.append((weight.shape, bias is old.bias, given, transposed))
        return nn.Identity()

    kind: Any = made
    install_learned(twin, {"op": "0"}, {"op": start}, kind)
    assert asked == [((4, 6), True, "start", False)]
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    turned = nn.Sequential(Conv1D(4, 6))
    old = turned[0]
    install_learned(turned, {"op": "0"}, {"op": start}, kind)
    assert asked[1] == ((6, 4), True, "start", True)


@pytest.mark.parametrize(
    "name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"]
)
def test_processors_tell_whether_half_is_faster(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for other in both:
        monkeypatch.setattr(torch.cpu, other, lambda: False, raising=False)
    assert not multiplies_in_half("cpu") and multiplies_in_half("cuda")
    monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    assert multiplies_in_half("cpu")
    for other in both:
        monkeypatch.delattr(torch.cpu, other)
    assert not multiplies_in_half("cpu")
    assert learned_linear.multiplies_in_half is multiplies_in_half


@pytest.mark.parametrize(
    ("rate", "scale_rate"), [(None, None), (0.5, 0.3), (0.1, None)]
)
def test_adam_moves_offsets_and_scales(rate: Any, scale_rate: Any) -> None:
    """As torch's own with the rates of each; later steps are shares of the first."""
    settings = Reconstruction(rate=rate, scale_rate=scale_rate, optimizer="adam")
    mine, theirs = [learned(0), learned(1)], [learned(0), learned(1)]
    offsets = 0.02 if rate is None else rate
    scales = 0.002 if scale_rate is None else scale_rate
    groups = [{"params": [m.offset for m in theirs], "lr": offsets}]
    for module in theirs:
        size = scales * float(module.scale.detach().mean())
        groups.append({"params": [module.scale], "lr": size})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    full = [group["lr"] for group in optimizer.param_groups]
    move = _mover(mine, settings)
    generator = torch.Generator().manual_seed(0)
    for share in (1.0, 0.5, 0.25):
        for a, b in zip(mine, theirs, strict=True):
            for name in ("offset", "scale"):
                one = getattr(a, name)
                assert one.grad is None
                one.grad = torch.randn(one.shape, generator=generator)
                getattr(b, name).grad = one.grad.clone()
        move(share)
        for group, at_start in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = at_start * share
        optimizer.step()
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a.offset, b.offset)
            torch.testing.assert_close(a.scale, b.scale)
    assert callable(_adam(mine, settings))


def test_learning_needs_layers_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    root = nn.Identity()
    with pytest.raises(SchemeError) as refused:
        distillation.distill(root, {}, {}, [], Distillation())
    assert str(refused.value) == (
        "there is no integer weight-only linear layer to distill"
    )
    monkeypatch.setattr(distillation, "learnable", lambda *given: {"a": 1})
    with pytest.raises(DataError) as lacking:
        distillation.distill(root, {}, {}, [], Distillation())
    assert str(lacking.value) == "distillation needs at least one batch"
    monkeypatch.setattr(reconstruction, "learnable", lambda *given: {})
    monkeypatch.setattr(reconstruction, "blocks_of", lambda *given: ["a"])
    with pytest.raises(DataError) as lacking:
        reconstruct(root, {}, {}, [], Reconstruction())
    assert str(lacking.value) == "block reconstruction needs at least one batch"


def test_distillation_learns_offsets_where_they_have_a_rate() -> None:
    layers = [learned(0), learned(1)]
    optimizer = distillation._optimizer(layers, Distillation(rate=0.5, scale_rate=0.1))
    *scales, offsets = optimizer.param_groups
    assert len(scales) == 2 and offsets["lr"] == 0.5
    assert [id(p) for p in offsets["params"]] == [id(m.offset) for m in layers]
    assert all(g["betas"] == (0.9, 0.95) for g in optimizer.param_groups)


def test_features_of_a_sample_are_counted() -> None:
    for shape, expected in (
        ((5,), 5),
        ((7, 5), 5),
        ((7, 3, 5), 15),
        ((7, 0), 1),
        ((7, 1), 1),
    ):
        assert _features(torch.zeros(shape)) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_inputs_keep_their_type(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.6, -0.9], [3.0, 1.0]], dtype=dtype)
    owner: Any = SimpleNamespace(
        dynamic=False,
        input_scale=nn.Parameter(torch.tensor(0.5)),
        input_zero=torch.zeros(()),
        looks=False,
    )
    spec = QuantSpec(dtype="int8")
    assert TrainedLayer._quantized_input(owner, x, spec).dtype == dtype
    owner.dynamic = True
    for granularity in ("tensor", "token"):
        own = QuantSpec(dtype="int8", granularity=granularity)
        found = TrainedLayer._quantized_input(owner, x, own)
        assert found.dtype == dtype
        largest = x.float().abs()
        largest = largest.amax(1, keepdim=True) if granularity == "token" else 3.0
        scale = largest / 127
        expected = torch.round(x.float() / scale) * scale
        torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
        if granularity == "token":
            assert float(found[0, 1]) == pytest.approx(-0.9, rel=1e-3)
    owner.dynamic, owner.input_scale = False, None
    assert TrainedLayer._quantized_input(owner, x, spec) is x
