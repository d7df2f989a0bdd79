"""What training does at its edges: gradients by hand, masks, copies of calls, what is judged."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.training import distillation, low_rank_files
from octavo.adapters.pytorch.training.block_calls import (
    BlockCall,
    _fresh,
    _place_of_hidden,
    _without,
    block_calls,
    token_mask,
    valid_tokens,
)
from octavo.adapters.pytorch.training.distillation import _VERDICTS, _Goal, _is_judged
from octavo.adapters.pytorch.training.straight_through import (
    RoundToGrid,
    nearest_passed,
    round_to_grid,
)
from octavo.core.contract.training import Distillation
from octavo.core.errors import ConfigError, SchemeError
from octavo.core.values.scheme import QuantSpec

# Rounding that gradients pass


def test_gradients_of_rounding_by_hand() -> None:
    """Esser et al. 2020, eq. 3, and LSQ+ for the zero point; both ends belong to the range."""
    w = torch.tensor([-9.0, -4.0, -0.6, 1.3, 3.0, 7.0], requires_grad=True)
    v = torch.zeros(6, requires_grad=True)
    scale = torch.tensor([2.0], requires_grad=True)
    zero = torch.tensor([1.0], requires_grad=True)
    low, high = -1, 3
    out = RoundToGrid.apply(w, v, scale, zero, low, high)
    # Codes w / s + 1: -3.5, -1, .7, 1.65, 2.5, 4.5, and -1 is the lowest.
    units = torch.tensor([-2.0, -2.0, 0.0, 1.0, 2.0, 2.0])
    torch.testing.assert_close(out, units * 2)
    slope = torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4, 1e5])
    out.backward(slope)
    inside = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(w.grad, slope * inside)
    torch.testing.assert_close(v.grad, slope * inside * 2)
    ratio = w.detach() / 2
    of_scale = (slope * (units - inside * ratio)).sum().reshape(1)
    torch.testing.assert_close(scale.grad, of_scale)
    torch.testing.assert_close(zero.grad, ((inside - 1) * slope * 2).sum().reshape(1))


def test_the_largest_code_is_within_the_range() -> None:
    w = torch.tensor([3.0, 3.6], requires_grad=True)
    spec = QuantSpec(dtype="int3", symmetric=False)
    out = round_to_grid(w, torch.ones(1), torch.zeros(1), spec)
    assert out.tolist() == [3, 3]
    out.sum().backward()
    assert w.grad.tolist() == [1, 0]
    moved = round_to_grid(
        w, torch.ones(1), torch.zeros(1), spec, torch.tensor([-1.0, 0])
    )
    assert moved.tolist() == [2, 3]
    x = torch.tensor([0.4, 1.6], requires_grad=True)
    passed = nearest_passed(x)
    assert passed.tolist() == [0, 2]
    passed.sum().backward()
    assert x.grad.tolist() == [1, 1]


# Calls of blocks


class Masked(nn.Module):
    def forward(self, ids: Any, attention_mask: Any = None, other: Any = None) -> Any:
        return ids


def test_masks_are_of_zeros_and_ones_with_some_zeros() -> None:
    root, ids = Masked(), torch.ones(2, 3)
    padded = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert token_mask(root, ((ids, padded), {})) is padded
    assert token_mask(root, ((ids,), {"attention_mask": padded})) is padded
    assert token_mask(root, ((ids,), {"other": padded})) is None
    assert token_mask(root, ((ids,), {})) is None
    for other in (torch.ones(2, 3), padded * 2, padded[None], "mask", None):
        assert token_mask(root, ((ids, other), {})) is None
    hidden = torch.zeros(2, 3, 8)
    valid = valid_tokens(padded, hidden)
    assert valid is not None and valid.dtype == torch.float32
    assert valid.tolist() == padded[..., None].tolist()
    assert valid_tokens(None, hidden) is None
    assert valid_tokens(padded, hidden[0]) is None
    assert valid_tokens(padded, hidden[:, :2]) is None
    assert valid_tokens(padded, hidden[..., None]) is None


class Block(nn.Module):
    def forward(self, hidden: Any, scale: Any = 1.0, *, ids: Any = None) -> Any:
        return hidden * scale


def test_where_the_hidden_state_is() -> None:
    block, floats, whole = Block(), torch.ones(2), torch.ones(2, dtype=torch.int64)
    place = _place_of_hidden
    assert place("b", block, (floats, floats), {}) == 0
    assert place("b", block, (whole, floats), {}) == 1
    # Of names the first argument's, and else the first of floats.
    assert place("b", block, (), {"scale": floats, "hidden": floats}) == "hidden"
    assert place("b", block, (), {"ids": whole, "scale": floats}) == "scale"
    with pytest.raises(SchemeError) as raised:
        place("layers.0", block, (whole, "x"), {"ids": None})
    assert str(raised.value) == (
        "block 'layers.0' is called without a tensor of floats as hidden state and cannot be "
        "reconstructed by itself"
    )
    assert _without((1, 2), {"a": 3}, 0) == ((None, 2), {"a": 3})
    assert _without((1, 2), {"a": 3, "b": 4}, "a") == ((1, 2), {"b": 4})


class Cache:
    """State that a block may write into."""

    def __init__(self) -> None:
        self.met: list[int] = []


def test_calls_get_containers_and_states_of_their_own() -> None:
    cache, tensor = Cache(), torch.ones(2)
    value = {"a": [tensor, cache], "b": (1, "x"), "c": OrderedDict(d=cache)}
    found = _fresh(value)
    assert found is not value and found["a"] is not value["a"]
    # Tensors are shared: a block does not write into them.
    assert found["a"][0] is tensor
    assert isinstance(found["a"][1], Cache) and found["a"][1] is not cache
    assert found["b"] == (1, "x") and type(found["b"]) is tuple
    assert type(found["c"]) is OrderedDict and found["c"] is not value["c"]
    assert isinstance(found["c"]["d"], Cache) and found["c"]["d"] is not cache


def test_a_call_changes_nothing_that_it_is_given() -> None:
    class Writes(nn.Module):
        def forward(self, hidden: Any, many: Any, *, cache: Any = None) -> Any:
            many.append(1)
            cache.met.append(1)
            return {"out": hidden.add_(len(many) + len(cache.met))}

    many: list[int] = []
    cache = Cache()
    call = BlockCall((None, many), {"cache": cache}, 0)
    hidden = torch.zeros(2)
    for _ in range(2):
        assert call(Writes(), hidden).tolist() == [2, 2]
    assert many == [] and cache.met == [] and hidden.tolist() == [0, 0]
    named = BlockCall((), {"many": many, "cache": cache}, "hidden")
    assert named(Writes(), hidden).tolist() == [2, 2]


class Two(nn.Module):
    """Two blocks; what is between them is a setting."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        self.between = between

    def forward(self, x: Any, attention_mask: Any = None) -> Any:
        return self.second(self.between(self.first(x, 2.0)))


def test_a_block_follows_where_it_is_given_what_the_one_before_put_out() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batches = [((x,), {"attention_mask": mask}), ((x + 1,), {})]
    found = block_calls(Two(lambda h: h), ["first", "second"], batches)
    first, second = found["first"], found["second"]
    assert len(first.calls) == len(second.calls) == 2
    assert not first.follows and second.follows and not second.hidden
    assert [h.tolist() for h in first.hidden] == [x.tolist(), (x + 1).tolist()]
    assert first.calls[0].args == (None, 2.0)
    valid = first.calls[0].valid
    assert valid is not None and valid.tolist() == mask[..., None].tolist()
    assert first.calls[1].valid is None
    # Changed on the way, its hidden states are kept.
    apart = block_calls(Two(lambda h: h + 1), ["first", "second"], batches)["second"]
    assert not apart.follows
    assert [h.tolist() for h in apart.hidden] == [
        (2 * x + 1).tolist(),
        (2 * x + 3).tolist(),
    ]


# What is judged


@pytest.mark.parametrize("steps", [1, 3, _VERDICTS, 2 * _VERDICTS, 5 * _VERDICTS + 2])
def test_a_few_states_are_judged_and_the_last(steps: int) -> None:
    every = max(1, steps // _VERDICTS)
    expected = {step for step in range(steps) if (step + 1) % every == 0} | {steps - 1}
    assert {step for step in range(steps) if _is_judged(step, steps)} == expected


class Lookup(nn.Module):
    """Logits that can be learned, one row for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[0.0, 1, 2], [3, 1, 0], [0, 0, 0]]))

    def forward(self, ids: Any, attention_mask: Any = None) -> Any:
        return self.logits[ids]


def test_what_is_predicted_for_padding_does_not_count() -> None:
    """Cross entropy against the teacher's odds, at a temperature, over the valid tokens."""
    teacher, twin = Lookup(), Lookup()
    with torch.no_grad():
        twin.logits.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 0], [5, 0, 0]]))
    ids = torch.tensor([[0, 1, 2], [1, 2, 2]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    batches = [((ids,), {"attention_mask": mask}), ((ids,), {})]
    settings = Distillation(temperature=2.0, half=False)
    goal = _Goal(teacher, twin, batches, settings)
    assert goal.held_back == [1] and goal.learned == [0]
    odds = torch.softmax(teacher.logits / 2, -1)[ids].to(torch.bfloat16)
    surprise = -(odds * torch.log_softmax(twin.logits / 2, -1)[ids]).sum(-1)
    of_valid = (surprise[0, 0] + surprise[0, 1] + surprise[1, 0]) / 3
    torch.testing.assert_close(goal.loss(0, half=False), of_valid)
    torch.testing.assert_close(goal.loss(1, half=False), surprise.mean())
    assert goal.verdict() == pytest.approx(float(surprise.mean()))
    many = _Goal(teacher, twin, batches * 4, settings)
    assert many.held_back == [3, 7] and many.learned == [0, 1, 2, 4, 5, 6]


def test_rates_fall_to_nothing_and_the_best_state_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD(
        [{"params": [value], "lr": 8.0}, {"params": [nn.Parameter(torch.ones(1))]}],
        lr=4.0,
    )
    rates: list[list[float]] = []
    verdicts = iter([5.0, 9.0, 3.0, 3.0, float("nan")])

    class Goal:
        learned = (4, 6)

        def loss(self, index: int, *, half: bool) -> torch.Tensor:
            rates.append([group["lr"] for group in optimizer.param_groups])
            assert index == (4, 6)[(len(rates) - 1) % 2]
            return value.sum()

        def verdict(self) -> float:
            return next(verdicts)

    class Kept:
        def __init__(self, modules: Any) -> None:
            self.value = float(value.detach())

        def restore(self) -> None:
            kept.append(self.value)

    kept: list[float] = []
    monkeypatch.setattr(distillation, "_optimizer", lambda *given: optimizer)
    monkeypatch.setattr(distillation, "State", Kept)
    goal: Any = Goal()
    distillation._descend(goal, [], Distillation(steps=4))
    assert rates == [[8.0, 4.0], [6.0, 3.0], [4.0, 2.0], [2.0, 1.0]]
    # After two steps, of 8 and 6, the loss was the least.
    assert kept == [-14.0]


def test_updates_are_written_as_peft_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import safe_open

    down, up = torch.arange(6.0).reshape(2, 3), torch.ones(4, 2)
    layer = SimpleNamespace(down=down, up=up, gain=1.5, dropout=nn.Dropout(0.25))
    whole = SimpleNamespace(
        down=down + 1, up=up + 1, gain=1.5, dropout=nn.Dropout(0.25)
    )
    found = {"a.b": layer, "": whole}
    monkeypatch.setattr(low_rank_files, "own_updates", lambda root: found)
    folder = tmp_path / "one" / "two"
    for _ in range(2):
        low_rank_files.save_updates(nn.Identity(), folder)
    text = (folder / "adapter_config.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": 2,
        "lora_alpha": 3.0,
        "lora_dropout": 0.25,
        "target_modules": ["a.b", ""],
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    assert text.startswith('{\n  "peft_type"')
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {
            f"base_model.model.{path}lora_{factor}.weight"
            for path in ("a.b.", "")
            for factor in "AB"
        }
        torch.testing.assert_close(
            file.get_tensor("base_model.model.a.b.lora_A.weight"), down
        )
    settings, tensors = low_rank_files._read(folder)
    assert settings == json.loads(text) and len(tensors) == 4
    monkeypatch.setattr(low_rank_files, "own_updates", lambda root: {})
    with pytest.raises(SchemeError) as raised:
        low_rank_files.save_updates(nn.Identity(), folder)
    assert str(raised.value) == (
        "the model has no low-rank updates: octavo.qlora adds them"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("bias", "all"),
        ("use_dora", True),
        ("use_rslora", True),
        ("rank_pattern", {"a": 4}),
        ("alpha_pattern", {"a": 4}),
    ],
)
def test_updates_of_another_kind_are_named(
    key: str, value: Any, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    plain = {"peft_type": "LORA", "bias": None, "rank_pattern": {}}
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(plain), encoding="utf-8")
    assert low_rank_files._read(tmp_path)[0] == plain
    file.write_text(json.dumps({**plain, key: value}), encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        low_rank_files._read(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: {key} is {value!r}; without peft only plain LoRA of one rank is read: "
        "pip install peft"
    )
    file.unlink()
    with pytest.raises(ConfigError) as raised:
        low_rank_files._read(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path} holds no low-rank updates (")
    assert str(raised.value).endswith(
        "): give the folder that octavo.save_adapters or peft's save_pretrained wrote"
    )
