"""Low-rank updates at their edges, and what the backend's door passes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.adapters.pytorch.training import (
    distillation,
    door,
    low_rank_files,
    low_rank_results,
    qat,
    qlora,
)
from octavo.adapters.pytorch.training.low_rank_results import (
    Update,
    _of_peft,
    _on_changed_input,
    _repaired,
    _write_base,
    merged,
)
from octavo.core.contract.training import Distillation, LowRank, Qat
from octavo.core.errors import SchemeError
from octavo.core.values.scheme import OpScheme, QuantSpec

NF4 = {"dtype": "nf4", "granularity": "group:64"}


def base(model: nn.Module, width: int = 64) -> Any:
    rule = {"types": "linear", "mode": "weight_only", "weight": NF4}
    batch = (torch.ones(2, width),)
    return octavo.quantize_model(model.eval(), {"rules": [rule]}, [batch]).candidate


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x))


class Speaks(Two):
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return {}


# The door


def opened(**more: Any) -> tuple[Any, Any]:
    root = nn.Linear(2, 2)
    whole: Any = SimpleNamespace(root=root, layers="layers", factors={}, **more)
    over: Any = "over"
    made = door.TorchTraining(
        SimpleNamespace(), lambda: whole, lambda batches: ["calls", *batches], over
    )
    return made, whole


def test_the_door_passes_on_what_distillation_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(distillation, "distill", lambda *of: given.append(of) or {})
    training, whole = opened()
    settings, parameters = Distillation(steps=3), {"a": 1}
    training.distill(parameters, ["b"], settings)
    assert given[0] == (
        whole.root,
        "layers",
        parameters,
        ["calls", "b"],
        settings,
        whole.root,
    )
    teacher = nn.Linear(3, 3)
    training.distill(parameters, ["b"], None, teacher)
    assert given[1][4] == Distillation()
    # A twin of the teacher, on its numbers.
    found = given[1][5]
    assert found is not whole.root and found is not teacher
    assert found.weight.data_ptr() == teacher.weight.data_ptr()


def test_the_door_passes_on_what_training_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(qat, "TorchQatModel", lambda *of: given.append(of))
    training, whole = opened()
    training.prepare_qat("recipe", {"a": 1}, Qat(start="lsq"), ["b"])
    assert given == [
        (whole, "recipe", {"a": 1}, "over", Qat(start="lsq"), ["calls", "b"])
    ]


def test_float_models_change_their_inputs_as_they_must(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(door, "install", lambda *of: given.append(of))
    root = nn.Linear(2, 2)
    capture: Any = SimpleNamespace(root=root, layers="layers", factors={})
    assert door._float_root(capture) is root and not given
    capture.factors = {"a": 1}
    found = door._float_root(capture)
    assert found is not root and given == [(found, "layers", {"a": 1})]
    assert found.weight.data_ptr() == root.weight.data_ptr()


def test_models_of_transformers_save_their_updates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Saves(nn.Linear):
        def save_pretrained(self, folder: Any) -> None: ...

    root: nn.Module = Saves(2, 2)
    asked: list[Any] = []
    monkeypatch.setattr(qlora, "add_low_rank", lambda *of: asked.append(of) or root)
    monkeypatch.setattr(door, "_torch_candidate", lambda candidate: candidate)
    training, _ = opened()
    candidate: Any = SimpleNamespace(module=root)
    assert training.add_low_rank(candidate) is root
    assert asked == [(candidate, LowRank())]
    saves: Any = root.save_pretrained
    assert isinstance(saves, low_rank_files.SaveUpdates) and saves._root is root
    root = nn.Linear(2, 2)
    assert "save_pretrained" not in training.add_low_rank(candidate).__dict__


# Updates of peft


def test_peft_takes_every_layer_where_none_is_named() -> None:
    peft = pytest.importorskip("peft")
    from octavo.adapters.pytorch.training.peft_layers import peft_by_settings

    candidate = base(Two())
    training, _ = opened()
    asked = peft.LoraConfig(r=2)
    model = training.add_low_rank(candidate, asked)
    changed = {n for n, m in model.named_modules() if hasattr(m, "lora_A")}
    assert changed == {"base_model.model.first", "base_model.model.second"}
    assert asked.target_modules is None
    config = model.peft_config["default"]
    assert set(config.target_modules) == {"first", "second"}
    own = peft_by_settings(candidate, LowRank(rank=3, alpha=6, dropout=0.25))
    config = own.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 6, 0.25)
    assert config.task_type is None


def test_peft_is_told_what_generates(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    from octavo.adapters.pytorch.training import peft_layers

    given: list[Any] = []
    monkeypatch.setattr(peft_layers, "_registered", lambda config: config)
    monkeypatch.setattr(
        peft_layers.peft, "get_peft_model", lambda *of: given.append(of)
    )
    candidate: Any = "candidate"
    for root, task in ((Two(), None), (Speaks(), "CAUSAL_LM")):
        found = {"first": root.first}
        monkeypatch.setattr(peft_layers, "_base", lambda _, pair=(root, found): pair)
        peft_layers.peft_by_settings(candidate, LowRank(rank=2))
        asked, config = given.pop()
        assert asked is root and config.target_modules == {"first"}
        assert config.task_type == task


@pytest.mark.parametrize(
    ("dora", "start"), [(True, True), (False, "pissa"), (True, "olora")]
)
def test_peft_reads_no_weight_of_few_bits(dora: bool, start: Any) -> None:
    pytest.importorskip("peft")
    from octavo.adapters.pytorch.training.peft_layers import _registered

    config = SimpleNamespace(use_dora=dora, init_lora_weights=start)
    with pytest.raises(SchemeError) as raised:
        _registered(config)
    assert str(raised.value) == (
        f"use_dora={dora}, init_lora_weights={start!r}: these read the base's weight, which "
        "is stored in few bits; use plain LoRA with init_lora_weights one of True, False, "
        "'gaussian', 'orthogonal'"
    )


def test_names_for_peft_mean_these_layers_alone() -> None:
    pytest.importorskip("peft")
    from octavo.adapters.pytorch.training.peft_layers import _base, _exactly

    def pair() -> nn.ModuleDict:
        return nn.ModuleDict({"q": nn.Identity(), "v": nn.Identity()})

    root = nn.ModuleDict({"a": pair(), "b": pair()})
    assert _exactly(root, ["b.q", "a.q"]) == ["q"]
    assert _exactly(root, ["b.v", "a.q"]) == ["a.q", "b.v"]
    deeper = nn.ModuleDict({"a": pair(), "b": nn.ModuleDict({"a": pair()})})
    assert _exactly(deeper, ["a.q"]) == r"a\.q"
    assert _exactly(deeper, ["a.v", "a.q"]) == r"a\.q|a\.v"
    with pytest.raises(SchemeError) as raised:
        _base(base(nn.Linear(64, 64)))
    assert str(raised.value) == (
        "the model is a single layer, and peft replaces layers within a model: use "
        "library='octavo', or wrap the float model in nn.Sequential"
    )


def test_active_adapters_lie_side_by_side() -> None:
    def linear(outputs: int, inputs: int, value: float) -> nn.Linear:
        made = nn.Linear(inputs, outputs, bias=False).half()
        nn.init.constant_(made.weight, value)
        return made

    layer = SimpleNamespace(
        active_adapters=["a", "elsewhere", "b"],
        lora_A={"a": linear(2, 5, 1), "b": linear(3, 5, 2), "off": linear(1, 5, 9)},
        lora_B={"a": linear(4, 2, 3), "b": linear(4, 3, 4), "off": linear(4, 1, 9)},
        scaling={"a": 0.5, "b": 2.0, "off": 1.0},
    )
    found = _of_peft(layer)
    assert found.down.shape == (5, 5) and found.up.shape == (4, 5)
    assert found.down.dtype == found.up.dtype == torch.float32
    assert found.down[:, 0].tolist() == [1, 1, 2, 2, 2]
    assert found.up[0].tolist() == [1.5, 1.5, 8, 8, 8]


# What becomes of updates


def test_a_repair_says_its_rank() -> None:
    spec = QuantSpec(dtype="int4", granularity="channel")
    (part,) = _repaired(OpScheme(mode="weight_only", weight=spec), 5).refined_by
    assert part.kind == "low_rank"
    assert dict(part.options) == {"dtype": "float32", "rank": 5}


def held(name: str, channel_axis: int = 0) -> Any:
    return SimpleNamespace(name=name, channel_axis=channel_axis)


def layer_at(path: str, *weights: Any, tied: bool = False, norm: str = "") -> Any:
    op = SimpleNamespace(weights=weights, weight=weights[0])
    return SimpleNamespace(path=path, op=op, is_tied=tied, norm=norm)


def test_a_base_is_written_with_its_bias_and_without_its_norm() -> None:
    root: Any = nn.Sequential(nn.Linear(3, 2, bias=False).half(), nn.BatchNorm1d(2))
    matrix = torch.arange(6.0).reshape(2, 3)
    decided: Any = SimpleNamespace(
        weight=SimpleNamespace(dequantize=lambda: matrix), further=()
    )
    layer = layer_at("0", held("0.weight"), norm="1")
    _write_base(root, layer, decided, torch.tensor([1.0, 2]))
    assert root[0].weight.dtype == torch.float16
    torch.testing.assert_close(root[0].weight.detach().float(), matrix)
    assert root[0].bias.tolist() == [1, 2] and not root[0].bias.requires_grad
    assert type(root[1]) is nn.Identity
    two: Any = SimpleNamespace(weight=decided.weight, further=(decided.weight,))
    with pytest.raises(ValueError, match="argument 2"):
        _write_base(root, layer, two, None)


@pytest.mark.parametrize("axis", [0, 1])
def test_updates_are_added_in_the_weights_own_type(
    axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (2, 3) if axis == 0 else (3, 2)
    root = nn.Module()
    root.weight = nn.Parameter(torch.ones(shape, dtype=torch.float16))
    update = Update(torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0], [2]]))
    monkeypatch.setattr(low_rank_results, "_by_op", lambda *of: {"op": update})
    capture: Any = SimpleNamespace(
        layers={"op": layer_at("", held("weight", axis))}, factors={}
    )
    nothing: Any = None
    found: Any = merged(root, nothing, nothing, capture, "float")
    product = torch.tensor([[2.0, 3, 4], [3, 5, 7]])
    assert found is root and found.weight.dtype == torch.float16
    expected = product if axis == 0 else product.t()
    torch.testing.assert_close(found.weight.detach().float(), expected)
    capture.layers["op"].is_tied = True
    with pytest.raises(SchemeError) as raised:
        merged(root, nothing, nothing, capture, "float")
    assert str(raised.value) == (
        "op 'op' shares its weight with another op, which has no such update: keep the "
        "updates over the base, or leave the op out of them"
    )


def test_updates_read_an_input_that_is_multiplied_alone() -> None:
    scale = torch.tensor([1.0, 2, 4])
    one = SimpleNamespace(carries={"scale"}, scale=scale)
    turned = SimpleNamespace(carries={"scale", "rotation"}, scale=scale)
    capture: Any = SimpleNamespace(factors={"a": (one,), "b": (turned,)})
    down = torch.ones(2, 3)
    assert _on_changed_input(down, "c", capture) is down
    torch.testing.assert_close(
        _on_changed_input(down, "a", capture), scale.expand(2, 3)
    )
    with pytest.raises(SchemeError) as raised:
        _on_changed_input(down, "b", capture)
    assert str(raised.value) == (
        "op 'b' turns its input first, and its update reads the input itself: save the "
        "updates beside the base, or train over a base without that transform"
    )


@pytest.mark.parametrize("dropout", [None, 0.25])
def test_updates_are_asked_for_as_the_files_say(
    dropout: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {"r": 2, "lora_alpha": 3.0}
    if dropout is not None:
        settings["lora_dropout"] = dropout
    prefix = "base_model.model."
    tensors = {
        f"{prefix}{path}.lora_{factor}.weight": torch.ones(1)
        for path in ("b.c", "a")
        for factor in "AB"
    }
    asked: list[Any] = []
    monkeypatch.setattr(low_rank_files, "_read", lambda folder: (settings, tensors))
    monkeypatch.setattr(
        low_rank_files, "add_low_rank", lambda *of: asked.append(of) or nn.Identity()
    )
    candidate: Any = "candidate"
    low_rank_files.load_updates(candidate, tmp_path)
    assert asked == [(candidate, LowRank(2, 3.0, dropout or 0.0, ("a", "b.c")))]


def test_updates_go_over_stored_weights_and_begin_as_linear_layers_do() -> None:
    candidate: Any = SimpleNamespace(module=nn.Linear(2, 2))
    with pytest.raises(SchemeError) as raised:
        qlora.frozen_base(candidate)
    assert str(raised.value) == (
        "the candidate has no weight-only linear layer; quantize it with a weight_only "
        "scheme such as nf4 group:64 first"
    )
    root: Any = qlora.add_low_rank(base(Two()), LowRank(rank=500))
    down = root.first.down.detach()
    assert down.abs().max() <= 64**-0.5 and down.abs().max() > 0.97 * 64**-0.5
    assert not root.first.up.any()
