"""Blocks in training at their edges: how they are called, and how they go down their error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.training.block_calls import (
    BlockCall,
    _place_of_hidden,
    _repeatable,
    _without,
    token_mask,
    valid_tokens,
)
from octavo.adapters.pytorch.training.block_descent import (
    Task,
    _Best,
    _steps,
    drawn,
)
from octavo.core.contract.training import Reconstruction


def task_of(*targets: float) -> Task:
    calls = [BlockCall((None,), {}, 0)] * len(targets)
    hidden = [torch.ones(2, 3, 1)] * len(targets)
    return Task(calls, hidden, [value * torch.ones(2, 3, 1) for value in targets])


def test_a_tasks_power_is_the_mean_square_of_a_target() -> None:
    assert task_of(1.0, 3.0).power() == pytest.approx((6 + 54) / 2)
    assert task_of(0.0, 0.0).power() == 1e-20


def test_a_seed_decides_the_order_of_batches() -> None:
    task = task_of(*range(7))
    torch.manual_seed(1)
    order = drawn(task, Reconstruction(seed=4, rows=4))
    found = [next(order) for _ in range(4)]
    generator = torch.Generator().manual_seed(4)
    turns = [torch.randperm(7, generator=generator).tolist()[::-1] for _ in range(2)]
    flat = turns[0] + turns[1]
    assert found == [flat[2 * i : 2 * i + 2] for i in range(4)]


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


def test_steps_go_down_the_mean_over_what_was_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over the targets' power; the cost of all is what states are judged by."""
    from octavo.adapters.pytorch.training import block_descent

    block, task = Gain(), task_of(1.0, 3.0)
    slopes, shares, costs = [], [], []

    def mover(modules: Any, settings: Any) -> Any:
        def move(share: float) -> None:
            assert block.gain.grad is not None
            slopes.append(float(block.gain.grad))
            shares.append(share)
            block.gain.grad = None

        return move

    monkeypatch.setattr(block_descent, "_mover", mover)
    best: Any = SimpleNamespace(take=lambda chosen, cost: costs.append(cost))
    settings = Reconstruction(iterations=4, rows=4, half=False)
    _steps(block, [], task, settings, best)
    # Squared errors of 6 elements each, of 2 - 1 and 2 - 3.
    assert costs == [12.0] * 4 and shares == [1.0, 0.75, 0.5, 0.25]
    assert slopes == pytest.approx([(12 - 12) / 30 / 2] * 4)
    slopes.clear()
    _steps(block, [], task, Reconstruction(iterations=2, rows=1, half=False), best)
    assert sorted(slopes) == pytest.approx([-12 / 30, 12 / 30])


def test_a_state_is_best_where_its_calls_cost_less_than_they_did() -> None:
    block = Gain()
    best = _Best([4.0, 8.0], [block])
    first = best.state
    best.take([0], 4.0)
    best.take([1], 9.0)
    assert best.state is first
    best.take([0], 3.0)
    assert best.state is not first
    second = best.state
    best.take([1], 6.5)
    assert best.state is second
    best.take([0, 1], 8.9)
    assert best.state is not second


class Cached:
    pass


def test_states_are_left_out_where_they_change_nothing() -> None:
    class Heeds(nn.Module):
        def forward(self, hidden: Any, *, cache: Any = None, gain: Any = None) -> Any:
            return hidden * (2 if cache is not None and self.heeds else 1)

    block, hidden, cache = Heeds(), torch.ones(2), Cached()
    call = BlockCall((None, 3), {"cache": cache, "gain": 1}, 0)
    block.heeds = False
    bare = _repeatable("b", block, BlockCall((None,), call.kwargs, 0), hidden)
    assert bare.kwargs == {"cache": None, "gain": 1} and bare.args == (None,)
    block.heeds = True
    whole = _repeatable("b", block, BlockCall((None,), call.kwargs, 0), hidden)
    kept = whole.kwargs["cache"]
    assert isinstance(kept, Cached) and kept is not cache and whole.kwargs["gain"] == 1
    plain = BlockCall((None,), {"gain": 1}, 0)
    assert _repeatable("b", block, plain, hidden) is plain


def test_masks_and_places_of_calls() -> None:
    class Root(nn.Module):
        def forward(
            self, ids: Any, other: Any = None, attention_mask: Any = None
        ) -> Any:
            return ids

    ids = torch.ones(2, 3)
    some = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert token_mask(Root(), ((ids, some), {})) is None
    assert token_mask(Root(), ((ids,), {"attention_mask": some})) is some
    assert token_mask(Root(), ((ids, None, some + 1), {})) is None
    valid = valid_tokens(some, torch.zeros(2, 3, 5, dtype=torch.float16))
    assert valid is not None and valid.dtype == torch.float32
    assert valid_tokens(some, torch.zeros(2, 4, 5)) is None
    assert valid_tokens(some, torch.zeros(2, 3)) is None
    kwargs = {"a": ids, "ids": ids}
    assert _place_of_hidden("b", Root(), (), kwargs) == "ids"
    assert _without((), kwargs, "ids") == ((), {"a": ids})
