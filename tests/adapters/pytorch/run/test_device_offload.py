"""A model that stays where it is while its modules compute elsewhere: one module's tensors at a
time, and the same numbers."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import named_tensors
from octavo.adapters.pytorch.observe.float_runs import float_model
from octavo.adapters.pytorch.observe.lending import why_not_lent
from octavo.adapters.pytorch.run.device_offload import Lender
from octavo.adapters.pytorch.session import TorchSession
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import DataError
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from tests.helpers import as_opened, torch_session

META = torch.device("meta")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gain * self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """A branch on a shape keeps it from being traced."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            if x.shape[1] > 1000:
                x = x[:, :1000]
            x = block(x)
        return self.head(x)


class Counting(Lender):
    """Copies where others move; counts the bytes that are elsewhere at a time."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.now, self.most, self.brought = 0, 0, set[int]()

    def is_there(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self.brought

    def bring(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.is_there(tensor):
            return tensor
        copy, size = tensor.detach().clone(), tensor.nbytes
        copy = (
            nn.Parameter(copy, requires_grad=False)
            if isinstance(tensor, nn.Parameter)
            else copy
        )
        self.brought.add(id(copy))
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(copy, self._gone, size, id(copy))
        return copy

    def _gone(self, size: int, key: int) -> None:
        self.now -= size
        self.brought.discard(key)


def session_of(model: nn.Module) -> TorchSession:
    return torch_session(model, (torch.randint(50, (2, 7)),), capture="modules")


def quantized(
    session: TorchSession, batches: list[Any], **rule: Any
) -> tuple[Any, Realizer]:
    o = as_opened(session)
    space = build_space(
        o, [Rule(types=["linear"], **rule), Rule(types="embedding", keep="float")]
    )
    made = Realizer(o, space, PluginHost(third_party=False))
    made.calibrate(batches)
    return made.candidate(space.recipe(space.first())), made


@pytest.mark.parametrize(
    "rule",
    [
        {
            "mode": "weight_only",
            "weight": {"dtype": "int4", "granularity": "group:32"},
            "algorithm": "gptq",
        },
        {
            "mode": "static",
            "weight": {"dtype": "int8", "granularity": "channel"},
            "input": {"dtype": "uint8"},
        },
    ],
)
def test_lent_tensors_give_the_same_numbers_a_module_at_a_time(rule: Any) -> None:
    torch.manual_seed(0)
    model, batches = Net(), [(torch.randint(50, (2, 7)),) for _ in range(3)]
    expected, _ = quantized(session_of(model), batches, **rule)
    session, lender = session_of(model), Counting()
    session.capture = session.capture.lent_by(lender)
    home = {name: (id(t), t.clone()) for name, t in named_tensors(model).items()}
    o = as_opened(session)
    Realizer(
        o,
        build_space(o, [Rule(types=["linear"], **rule)]),
        PluginHost(third_party=False),
    ).calibrate(batches)
    gc.collect()
    largest = max(
        sum(p.nbytes for p in m.parameters()) for m in (model.blocks[0], model.embed)
    )
    assert 0 < lender.most <= largest
    assert lender.now == 0
    candidate, _ = quantized(session, batches, **rule)
    for batch in batches:
        np.testing.assert_array_equal(candidate.run(batch)[0], expected.run(batch)[0])
    for name, tensor in named_tensors(model).items():
        assert id(tensor) == home[name][0]
        assert torch.equal(tensor, home[name][1])


def test_candidates_share_what_they_keep_of_the_float_model_and_let_it_go() -> None:
    session, lender = session_of(Net()), Counting()
    session.capture = session.capture.lent_by(lender)
    first, second = session.reference(), session.reference()
    assert first.native.head.weight is first.native.embed.weight
    assert first.native.blocks[0].gain is second.native.blocks[0].gain
    whole = sum(p.nbytes for p in session.capture.root.parameters())
    assert lender.now == whole
    del first, second
    gc.collect()
    assert lender.now == 0


def test_only_the_running_module_is_on_the_device() -> None:
    model = Net()
    session = session_of(model)
    assert why_not_lent(session.capture, ((torch.randint(50, (2, 7)),), {}), META) == ""
    seen: list[tuple[str, set[str]]] = []
    twin = float_model(session.capture.lent_by(Lender(META)))
    for path, module in twin.named_modules():

        def note(_: nn.Module, __: Any, ___: Any, path: str = path) -> None:
            seen.append(
                (
                    path,
                    {
                        name
                        for name, t in twin.named_parameters(remove_duplicate=False)
                        if t.is_meta
                    },
                )
            )

        if path.endswith(("up", "down", "norm", "head", "embed")):
            module.register_forward_hook(note, prepend=True)
    y = twin(torch.randint(50, (2, 7), device="meta"))
    assert y.is_meta
    assert [path for path, _ in seen] == [
        "embed",
        *(f"blocks.{i}.{n}" for i in range(4) for n in ("norm", "up", "down")),
        "head",
    ]
    for path, there in seen:
        block = path.rpartition(".")[0]
        assert there <= {f"{path}.weight", f"{path}.bias", f"{block}.gain"}
        assert f"{path}.weight" in there
    assert not any(t.is_meta for t in twin.parameters())
    assert twin.head.weight is twin.embed.weight is model.embed.weight


def test_what_does_not_run_module_by_module_is_moved_as_a_whole() -> None:
    class Reader(Net):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            y = super().forward(ids)
            # There are no numbers on the meta device.
            return y if float(y.sum()) else -y

    session = session_of(Reader())
    why = why_not_lent(session.capture, ((torch.randint(50, (2, 7)),), {}), META)
    assert "do not run one by one" in why
    assert session.capture.lender is None
    traced = torch_session(nn.Sequential(nn.Linear(4, 4)), (torch.randn(2, 4),))
    assert "one graph" in why_not_lent(traced.capture, ((torch.randn(2, 4),), {}), META)


def test_a_run_that_ends_early_or_fails_leaves_the_model_at_home() -> None:
    model, lender = Net(), Counting()
    session = session_of(model)
    session.capture = session.capture.lent_by(lender)
    values: list[str] = []
    session.observe(
        [(torch.randint(50, (2, 7)),)],
        [session.describe().ops[1].inputs[0]],
        lambda name, _: values.append(name),
    )
    assert len(values) == 1
    with pytest.raises(DataError, match="index out of range"):
        session.observe(
            [(torch.full((2, 7), 99),)],
            [session.describe().ops[-1].outputs[0]],
            lambda *_: None,
        )
    gc.collect()
    assert lender.now == 0


def test_presets_run_on_a_lent_model() -> None:
    session = session_of(Net())
    session.capture = session.capture.lent_by(Counting())
    o = as_opened(session)
    space = build_space(o, [])
    made = Realizer(o, space, PluginHost(third_party=False))
    batch = (torch.randint(50, (2, 7)),)
    candidate = made.candidate(preset_recipe("int8-dynamic", space, o))
    exact = session.reference().run(batch)[0]
    assert np.abs(candidate.run(batch)[0] - exact).max() < 0.1 * np.abs(exact).max()
    assert candidate.fingerprint()
