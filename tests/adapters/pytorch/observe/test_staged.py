"""Values that are observed a few at a time are those of one whole pass, bit for bit, and cost about
one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.session import TorchSession
from octavo.core.contract.adapter import Batch
from octavo.core.errors import DataError
from tests.helpers import torch_session


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.kind = "full"

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x.add_(self.down(torch.relu_(self.up(x)))),)


class Stack(nn.Module):
    """Not traceable: the number of blocks is asked for at run time, and blocks work in place."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(16, 4)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        early = x.clone()
        for _ in range(2 if self.how == "twice" else 1):
            for i, layer in enumerate(self.layers):
                assert layer.kind == "full"
                (x,) = layer(x) if float(x.abs().sum()) >= 0 else (x,)
                early = x.clone() if i == 0 else early
                if self.how == "skip" and i == 2:
                    x = x + early
                elif self.how == "caught" and i == 2:
                    try:
                        x = self.layers[3](x)[0]
                    except Exception:
                        x = x * 0
                    break
        return self.head(x)


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.ReLU(inplace=True),
        nn.Linear(16, 16),
        nn.ReLU(inplace=True),
        nn.Linear(16, 4),
    )


def seen(watch: Any, values: Iterable[str]) -> list[tuple[str, torch.Tensor]]:
    found: list[tuple[str, torch.Tensor]] = []
    watch(values, lambda name, x: found.append((name, x.clone())))
    return found


def values_of(session: TorchSession) -> list[str]:
    return list(
        dict.fromkeys(
            v for op in session.describe().ops for v in (*op.inputs, *op.outputs)
        )
    )


def check(
    session: TorchSession,
    batches: list[Batch],
    values: list[list[str]],
    limit: int = 2**20,
) -> None:
    watch = session.watcher(batches, limit)
    everything = seen(partial(session.observe, batches), values_of(session))
    for some in values:
        found = seen(watch, some)
        expected = [(name, x) for name, x in everything if name in some]
        assert [name for name, _ in found] == [name for name, _ in expected] != []
        assert all(
            torch.equal(mine, x)
            for (_, mine), (_, x) in zip(found, expected, strict=True)
        )


@pytest.mark.parametrize("how", ["plain", "skip", "twice", "caught", "graph"])
@pytest.mark.parametrize("step", [1, 3])
def test_pages_in_execution_order_give_the_values_of_whole_passes(
    how: str, step: int
) -> None:
    torch.manual_seed(0)
    model = chain() if how == "graph" else Stack(how)
    batches: list[Batch] = [(torch.randn(6, 8),), (torch.randn(3, 8),)]
    session = torch_session(model.eval(), batches[0])
    values = values_of(session)
    pages = [values[i : i + step] for i in range(0, len(values), step)]
    check(session, batches, pages)
    check(session, batches, pages[::-1])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    inner = nn.Linear.forward
    monkeypatch.setattr(
        nn.Linear,
        "forward",
        lambda self, x: (
            calls.append(f"{self.in_features}x{self.out_features}") or inner(self, x)
        ),
    )
    return calls


def test_all_pages_cost_one_pass_and_one_batch_to_check_it(counted: list[str]) -> None:
    model = Stack()
    batches: list[Batch] = [(torch.randn(6, 8),) for _ in range(5)]
    session = torch_session(model.eval(), batches[0])
    counted.clear()
    watch = session.watcher(batches, 2**20)
    for i in range(4):
        assert len(seen(watch, [f"layers.{i}.up:out", f"layers.{i}.down:out"])) == 10
    # Each block once for each batch, and the check runs one batch twice.
    assert counted.count("16x32") == 4 * (5 + 2)
    assert counted.count("16x4") == 2
    assert len(seen(watch, ["head:out"])) == 5
    assert counted.count("16x32") == 4 * (5 + 2)


def test_a_model_that_looks_back_further_than_a_block_is_run_from_its_inputs(
    counted: list[str],
) -> None:
    batches: list[Batch] = [(torch.randn(6, 8),) for _ in range(2)]
    session = torch_session(Stack("skip").eval(), batches[0])
    watch = session.watcher(batches, 2**20)
    seen(watch, ["layers.2.up:out"])
    seen(watch, ["layers.3.up:out"])
    counted.clear()
    seen(watch, ["layers.3.down:out"])
    assert counted.count("16x32") == 4 * 2


@pytest.mark.parametrize("fits", [True, False])
def test_what_does_not_fit_is_not_kept(counted: list[str], fits: bool) -> None:
    batches: list[Batch] = [(torch.randn(6, 8),) for _ in range(2)]
    session = torch_session(Stack().eval(), batches[0])
    # The batches, and the input and the output of one block.
    watch = session.watcher(batches, 2 * 4 * 6 * (8 + 16 + 16) - (not fits))
    seen(watch, ["layers.1.up:out"])
    counted.clear()
    seen(watch, ["layers.2.up:out"])
    assert counted.count("16x32") == (2 + 2 * 4 if fits else 2 * 3)


def test_values_of_one_block_may_come_one_after_the_other(counted: list[str]) -> None:
    batches: list[Batch] = [(torch.randn(6, 8),)]
    session = torch_session(Stack().eval(), batches[0])
    watch = session.watcher(batches, 2**20)
    seen(watch, ["layers.1.up:out"])
    seen(watch, ["layers.2.up:out"])
    counted.clear()
    seen(watch, ["layers.2.down:out"])
    seen(watch, ["layers.3.up:out"])
    seen(watch, ["layers.3.down:out"])
    assert counted.count("16x32") == 3


@pytest.mark.parametrize("make", [Stack, chain])
def test_a_pass_ends_behind_its_last_value(make: Any, counted: list[str]) -> None:
    batches: list[Batch] = [(torch.randn(6, 8),)]
    session = torch_session(make().eval(), batches[0])
    counted.clear()
    first = session.describe().ops[1].inputs[0]
    assert session.observe(batches, [first], lambda *_: None) == 1
    assert "16x4" not in counted
    assert len(counted) <= 3


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    batches: list[Batch] = [(torch.randn(6, 8),) for _ in range(3)]
    session = torch_session(Stack().eval(), batches[0])
    watch = session.watcher(batches, 2**20)
    seen(watch, ["layers.0.up:out"])

    def refuse(name: str, x: Any) -> None:
        raise DataError(name)

    with pytest.raises(DataError):
        watch(["layers.1.up:out"], refuse)
    check(session, batches, [["layers.1.up:out"], ["layers.2.up:out"]])
    assert len(seen(watch, ["layers.2.up:out"])) == 3


@pytest.mark.parametrize("family", ["llama", "qwen2", "t5"])
def test_architectures(family: str, counted: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    if family == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size))
    elif family == "qwen2":
        kinds = ["full_attention", "sliding_attention"] * 2
        config = transformers.Qwen2Config(
            **size,
            num_key_value_heads=1,
            use_sliding_window=True,
            sliding_window=4,
            layer_types=kinds,
        )
        model = transformers.Qwen2ForCausalLM(config)
    else:
        model = transformers.T5Model(
            transformers.T5Config(
                d_model=32, d_ff=48, d_kv=16, num_layers=2, num_heads=2, vocab_size=64
            )
        )
    ids = [torch.randint(64, (3, 9)) for _ in range(3)]
    more = {"use_cache": False} if family != "t5" else {}
    batches: list[Batch] = [
        {"input_ids": x, **({"decoder_input_ids": x} if family == "t5" else {}), **more}
        for x in ids
    ]
    session = torch_session(model.eval(), batches[0])
    values = values_of(session)
    check(session, batches, [values[i : i + 5] for i in range(0, len(values), 5)])
    if family == "t5":
        return
    watch = session.watcher(batches, 2**24)
    counted.clear()
    for value in (v for v in values if "self_attn.q_proj" in v):
        seen(watch, [value])
    # Seven linear layers in each of four blocks; each batch meets them once, and one batch and the
    # head twice more for the check.
    assert len(counted) == 7 * 4 * (3 + 2) + 2
