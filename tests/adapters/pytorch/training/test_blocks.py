"""Block reconstruction: how blocks are called, what they are fed with, what is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.training.block_calls import BlockCall, block_calls
from octavo.adapters.pytorch.training.block_descent import Task, drawn
from octavo.adapters.pytorch.training.learned_linear import LearnedLinear
from octavo.adapters.pytorch.training.reconstruction import Line
from octavo.adapters.pytorch.training.signed_rounding import SignedLinear
from octavo.core.contract.adapter import Batch
from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.training import Distillation, Reconstruction
from octavo.core.opening.rules import Rule, SpecRule
from octavo.core.quantizing.algorithms.rtn import RoundToNearest, RtnConfig
from octavo.core.values.scheme import QuantSpec

from .test_training import TWO_BITS, error, prepared

Tensor = torch.Tensor
FEW = Reconstruction(iterations=12, half=False, rows=1)
KEPT = Rule(ops="head", keep="float")


class Mix(nn.Module):
    """A block: two layers around a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def mixed(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    """Blocks between an input and a head; a subclass says how they are called."""

    kind: type[Mix]

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.kind() for _ in range(3))
        self.head = nn.Linear(32, 8)

    def blocks(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


class Memory:
    """Remembers what each block was given, as a cache of keys does."""

    def __init__(self) -> None:
        self.seen: dict[int, list[Tensor]] = {}


class Remembering(Mix):
    def forward(self, x: Tensor, *, notebook: Memory | None = None) -> Tensor:
        if notebook is not None:
            notebook.seen.setdefault(id(self), []).append(x)
            x = sum(notebook.seen[id(self)], torch.zeros_like(x))
        return self.mixed(x)


class Recalling(Model):
    kind = Remembering

    def blocks(self, x: Tensor) -> Tensor:
        notebook = Memory()
        for layer in self.layers:
            x = layer(x, notebook=notebook)
        return x


class InNeed(Mix):
    def forward(self, x: Tensor, notebook: Memory) -> Tensor:
        notebook.seen[len(notebook.seen)] = [x]
        return self.mixed(x) * len(notebook.seen)


class Needing(Model):
    kind = InNeed

    def blocks(self, x: Tensor) -> Tensor:
        notebook = Memory()
        for layer in self.layers:
            x = layer(x, notebook)
        return x


class Named(Mix):
    def forward(self, bias: float, hidden: Tensor) -> tuple[Tensor, None]:
        return self.mixed(hidden) + bias, None


class ByName(Model):
    kind = Named

    def blocks(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(hidden=x, bias=0.5)
        return x


class InPlace(Mix):
    def forward(self, x: Tensor) -> Tensor:
        x += self.down(torch.relu(self.up(x.clone())))
        return x


class Overwriting(Model):
    kind = InPlace

    def blocks(self, x: Tensor) -> Tensor:
        x = x.clone()
        for layer in self.layers:
            x = layer(x)
        return x


class Between(Model):
    """Something lies between its blocks."""

    kind = type("Plain", (Mix,), {"forward": Mix.mixed})

    def blocks(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) * 0.5
        return x


MODELS: list[Callable[[], Model]] = [Recalling, Needing, ByName, Overwriting, Between]


def data(*lengths: int) -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.randn(4, length, 32),) for length in lengths]


@pytest.mark.parametrize("make", MODELS)
def test_blocks_are_run_as_the_model_calls_them(make: Callable[[], Model]) -> None:
    torch.manual_seed(0)
    model, batches = make().eval(), data(3, 5)
    paths = [f"layers.{i}" for i in range(3)]
    outputs: dict[str, list[Tensor]] = {path: [] for path in paths}

    def note(path: str) -> Any:
        def hook(_: Any, args: Any, result: Any) -> None:
            first = result[0] if isinstance(result, tuple) else result
            outputs[path].append(first.clone())

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(note(path)) for path in paths
    ]
    with torch.no_grad():
        for batch in batches:
            model(*batch)
    for handle in handles:
        handle.remove()
    for path in paths:
        alone = block_calls(model, [path], [(batch, {}) for batch in batches])[path]
        pairs = zip(alone.calls, alone.hidden, strict=True)
        block = model.get_submodule(path)
        for (call, hidden), expected in zip(pairs, outputs[path], strict=True):
            with torch.no_grad():
                # As often as wanted: nothing that it was given remembers the first time.
                found = [call(block, hidden) for _ in range(2)]
            assert all(torch.allclose(y, expected, atol=1e-6) for y in found)


@pytest.mark.parametrize("make", MODELS)
def test_any_such_model_is_reconstructed(make: Callable[[], Model]) -> None:
    torch.manual_seed(0)
    batches = data(3, 5, 4, 6)
    session, recipe, start = prepared(make().eval(), batches, TWO_BITS, KEPT)
    learned = session.training().reconstruct(start, batches, FEW)
    assert error(session, recipe, learned, batches) < 0.9 * error(
        session, recipe, start, batches
    )


class Plain(Mix):
    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(x)


class Chain(Model):
    kind = Plain


@dataclass
class Layer:
    """One linear layer as AutoRound learns it, by eqs. 3 to 6 of its paper."""

    weight: Tensor
    scale: Tensor
    zero: Tensor
    top: int

    def __post_init__(self) -> None:
        rows = self.weight.shape[0]
        self.w = self.weight.view(rows, -1, 32)
        self.low, self.high = (
            self.scale * (0 - self.zero),
            self.scale * (self.top - self.zero),
        )
        # Back to the weight's own range, which rounding the zero point has moved.
        over = torch.maximum(self.w.amax(-1) / self.high, self.w.amin(-1) / self.low)
        self.most = over.clamp(min=1)
        self.learned = [
            torch.zeros_like(self.w),
            torch.ones_like(self.low),
            torch.ones_like(self.low),
        ]

    def grid(self, v: Tensor, alpha: Tensor, beta: Tensor) -> list[Tensor]:
        """Return codes, scale, zero point."""
        scale = (self.high * beta - self.low * alpha) / self.top
        zero = straight(-self.low * alpha / scale)
        whole = straight(self.w / scale[..., None] + v) + zero[..., None]
        return [whole.clamp(0, self.top), scale, zero]

    def quantized(self, *learned: Tensor) -> Tensor:
        codes, scale, zero = self.grid(*learned)
        numbers = (codes - zero[..., None]) * scale[..., None]
        return numbers.reshape(self.weight.shape)


def straight(x: Tensor) -> Tensor:
    return x + (torch.round(x) - x).detach()


def block_by_hand(
    block: Mix, layers: list[Layer], x: Tensor, target: Tensor, steps: int, rate: float
) -> tuple[list[list[Tensor]], Tensor, list[float]]:
    """Return each layer's best codes, scales and zero points, what the block puts out then, and the
    loss of each state."""

    def output(learned: list[list[Tensor]]) -> Tensor:
        up, down = (own.quantized(*v) for own, v in zip(layers, learned, strict=True))
        hidden = torch.relu(nn.functional.linear(x, up, block.up.bias))
        return x + nn.functional.linear(hidden, down, block.down.bias)

    now = [[t.clone().requires_grad_() for t in own.learned] for own in layers]
    best, losses = now, []
    for step in range(steps):
        loss = ((output(now) - target) ** 2).mean()
        losses.append(float(loss))
        if losses[-1] == min(losses):
            best = [[t.detach().clone() for t in own] for own in now]
        flat = [t for own in now for t in own]
        slopes = torch.autograd.grad(loss, flat)
        with torch.no_grad():
            for t, slope in zip(flat, slopes, strict=True):
                t -= rate * (1 - step / steps) * slope.sign()
            for own, (v, alpha, beta) in zip(layers, now, strict=True):
                v.clamp_(-0.5, 0.5)
                alpha.copy_(alpha.clamp(min=0.01).minimum(own.most))
                beta.copy_(beta.clamp(min=0.01).minimum(own.most))
    with torch.no_grad():
        kept = [own.grid(*learned) for own, learned in zip(layers, best, strict=True)]
        return kept, output(best), losses


@pytest.mark.parametrize("dtype", ["uint2", "uint3"])
@pytest.mark.parametrize(("steps", "rate"), [(6, None), (5, 0.05)])
def test_block_reconstruction_is_the_papers(
    dtype: str, steps: int, rate: float | None
) -> None:
    torch.manual_seed(0)
    model, (batch,) = Chain().eval(), data(40)
    rule = TWO_BITS.model_copy(
        update={
            "weight": SpecRule(
                dtype=dtype, granularity="group:32", scale_dtype="float32"
            )
        }
    )
    session, _, start = prepared(model, [batch], rule, KEPT)
    settings = Reconstruction(iterations=steps, rate=rate, half=False)
    learned = session.training().reconstruct(start, [batch], settings)
    exact = quantized = batch[0]
    lasts = []
    for i, block in enumerate(model.layers):
        names = [f"layers.{i}.up", f"layers.{i}.down"]
        weights = [start[name].weight for name in names]
        layers = [
            Layer(
                model.get_submodule(name).weight.detach(),
                w.params.scale,
                w.params.zero_point.float(),
                2 ** int(dtype[-1]) - 1,
            )
            for name, w in zip(names, weights, strict=True)
        ]
        with torch.no_grad():
            target = block(exact)
        kept, quantized, losses = block_by_hand(
            block, layers, quantized, target, steps, rate or 1 / steps
        )
        lasts.append(losses[-1] / min(losses))
        exact = target
        for name, (codes, scale, zero) in zip(names, kept, strict=True):
            found = learned[name].weight
            own = found.codes.view(codes.shape)
            assert (own == codes).float().mean() > 0.98
            close = torch.isclose(found.params.scale, scale, rtol=1e-3)
            assert close.float().mean() > 0.95
            assert (found.params.zero_point == zero).float().mean() > 0.95
    # The best state of one block or another is not its last.
    assert rate is not None or max(lasts) > 1.001


def test_a_decoder_of_transformers_with_padding_and_a_cache() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.LlamaConfig(**sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, :3] = 0
    tokens = torch.randint(0, 64, (2, 6))
    batches = [
        {"input_ids": tokens, "attention_mask": mask},
        {"input_ids": torch.randint(0, 64, (3, 5))},
    ]
    paths = ["model.layers.0", "model.layers.1"]
    found = block_calls(model, paths, [((), batch) for batch in batches])
    assert found[paths[1]].follows
    for path in paths:
        padded, whole = found[path].calls
        assert padded.valid is not None
        assert torch.equal(padded.valid[..., 0], mask.float())
        assert whole.valid is None
        # The cache of keys, whatever it is called, is nothing that they need.
        kept = [*padded.args, *padded.kwargs.values()]
        assert not any(hasattr(value, "get_seq_length") for value in kept)
    embeddings = Rule(ops=["model.embed_tokens", "lm_head"], keep="float")
    session, recipe, start = prepared(model, batches, TWO_BITS, embeddings)
    learned = session.training().reconstruct(start, batches, FEW)
    assert error(session, recipe, learned, batches[1:]) < error(
        session, recipe, start, batches[1:]
    )


def test_padding_counts_in_no_loss() -> None:
    torch.manual_seed(0)
    block, hidden, target = nn.Identity(), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    valid = torch.tensor([[[0.0], [1.0], [1.0]], [[1.0], [1.0], [1.0]]])
    task = Task([BlockCall((None,), {}, 0, valid)], [hidden], [target])
    spoiled = hidden.clone()
    spoiled[0, 0] = 100.0
    other = Task([BlockCall((None,), {}, 0, valid)], [spoiled], [target])
    expected = ((hidden - target)[valid[..., 0] == 1] ** 2).sum()
    for own in (task, other):
        torch.testing.assert_close(own.error(block, 0), expected)
        assert own.outputs(block)[1] == pytest.approx(float(expected), rel=1e-5)


def test_a_step_takes_as_many_batches_as_make_its_rows_and_all_before_any_again() -> (
    None
):
    sizes = (3, 3, 3, 9, 3, 3)
    hidden = [torch.zeros(rows, 2, 4) for rows in sizes]
    call = BlockCall((None,), {}, 0)
    task = Task([call] * len(sizes), hidden, hidden)
    steps = list(islice(drawn(task, Reconstruction(rows=6)), 40))
    for chosen in steps:
        rows = [sizes[i] for i in chosen]
        assert sum(rows) >= 6
        assert sum(rows[:-1]) < 6
    order = [index for chosen in steps for index in chosen]
    assert sorted(order[:6]) == sorted(order[6:12]) == list(range(6))
    assert order[:6] != order[6:12]


class Skip(nn.Module):
    """Two stacks: the second is fed with the first's result and, by each block, the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(Plain() for _ in range(2))
        self.second = nn.ModuleList(Crossed() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        memory = x
        for layer in self.first:
            memory = layer(memory)
        for layer in self.second:
            x = layer(x, memory)
        return x


class Crossed(Mix):
    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.mixed(x) + 0.5 * memory


def test_a_second_stack_is_fed_with_the_quantized_results_of_the_first() -> None:
    torch.manual_seed(0)
    batches = data(5, 6)
    model = Skip().eval()
    calls = [(batch, {}) for batch in batches]
    line = Line(model, ["first.0", "first.1", "second.0", "second.1"], calls)
    halves: dict[str, nn.Module] = {}
    for path in ("first.0", "first.1"):
        task = line.task(path)
        assert task is not None
        halves[path] = copy.deepcopy(model.get_submodule(path))
        with torch.no_grad():
            for p in halves[path].parameters():
                p.mul_(0.5)
        line.take(path, halves[path], task, task.outputs(halves[path])[0])
    with torch.no_grad():
        for path in ("second.0", "second.1"):
            task = line.task(path)
            assert task is not None
            for (x,), call, target in zip(
                batches, task.calls, task.targets, strict=True
            ):
                memory = halves["first.1"](halves["first.0"](x))
                assert torch.allclose(call.args[1], memory, atol=1e-6)
                exact = model.first[1](model.first[0](x))
                y = model.second[0](x, exact)
                expected = y if path == "second.0" else model.second[1](y, exact)
                assert torch.allclose(target, expected, atol=1e-6)
            block = model.get_submodule(path)
            line.take(path, block, task, task.outputs(block)[0])


GRIDS = [
    ("uint2", "channel", 32),
    ("int3", "tensor", 32),
    ("uint3", "group:20", 32),
    ("int4", "block:8x16", 32),
]


@pytest.mark.parametrize(("dtype", "granularity", "features"), GRIDS)
@pytest.mark.parametrize("kind", [SignedLinear, LearnedLinear])
@pytest.mark.parametrize("transposed", [False, True])
def test_any_grid_starts_where_its_algorithm_ended(
    dtype: str, granularity: str, features: int, kind: Any, transposed: bool
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, features)
    spec = QuantSpec(
        dtype=dtype, granularity=granularity, symmetric=not dtype.startswith("u")
    )
    # Half of the codes are not the nearest ones.
    made = RoundToNearest(RtnConfig()).quantize(
        weight + 0.3 * torch.randn(24, features), spec, WeightContext()
    )
    codes, own = made.codes, weight
    if transposed:
        codes, own = codes.t().contiguous(), weight.t().contiguous()
    start = replace(made, codes=codes)
    layer = kind(own, None, start, transposed=transposed)
    torch.testing.assert_close(layer.quantized_weight(), made.dequantize())
    result = layer.result(start)
    assert torch.equal(result.codes, codes)
    torch.testing.assert_close(result.params.scale, made.params.scale)
    assert torch.equal(result.params.zero_point, made.params.zero_point)
    assert result.codes.dtype == codes.dtype


class Judged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


def test_distillation_is_judged_by_what_it_did_not_learn_from() -> None:
    torch.manual_seed(0)
    model = Judged().eval()
    # Three batches of one token are soon known by heart; the last one is like any other data.
    batches: list[Batch] = [(torch.randn(1, 32),) for _ in range(3)]
    batches.append((torch.randn(400, 32),))
    session, recipe, start = prepared(model, batches, TWO_BITS)

    def surprise(parameters: Any, batch: Batch) -> float:
        quantized = torch.as_tensor(session.apply(recipe, parameters).run(batch)[0])
        with torch.no_grad():
            odds = model(*batch).softmax(-1)
        return float(-(odds * quantized.log_softmax(-1)).sum(-1).mean())

    wild = Distillation(steps=12, rate=0.2, scale_rate=0.1, half=False)
    learned = session.training().distill(start, batches, wild)
    assert surprise(learned, batches[3]) <= surprise(start, batches[3]) + 1e-5
    # Alone, they would have been learned.
    alone = session.training().distill(start, batches[:1], wild)
    assert surprise(alone, batches[0]) < surprise(start, batches[0])
    assert surprise(alone, batches[3]) > surprise(start, batches[3])
