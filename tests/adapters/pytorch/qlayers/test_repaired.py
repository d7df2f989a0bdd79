"""Layers whose weight has a low-rank repair: they compute with the numbers that the repaired weight
stands for, wherever that weight is used."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.adapters.pytorch.qlayers.repaired import RepairedInt8Linear
from octavo.adapters.pytorch.qlayers.weight_only import (
    WeightOnlyEmbedding,
    WeightOnlyLinear,
)
from octavo.adapters.pytorch.training.learned_linear import LearnedLinear
from octavo.adapters.pytorch.training.qlora import LowRankLinear
from octavo.adapters.pytorch.training.signed_rounding import SignedLinear
from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.training import LowRank
from octavo.core.errors import ModelError, SchemeError
from octavo.core.numerics.low_rank import Repair
from octavo.core.numerics.tensor import QuantizedTensor, compact
from octavo.core.quantizing.algorithms.low_rank import (
    LowRankRepair,
    LowRankRepairConfig,
)
from octavo.core.quantizing.algorithms.rtn import RoundToNearest, RtnConfig
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec

INT2 = QuantSpec(dtype="int2", granularity="group:32")
SCHEME = OpScheme(
    mode="weight_only",
    weight=INT2,
    refined_by=(PartChoice(kind="low_rank", options=(("rank", 4),)),),
)


def repaired(
    rows: int, features: int, dtype: torch.dtype = torch.float32, bits: int = 2
) -> QuantizedTensor:
    """A weight with a repair that is nothing of its error: a layer that drops it is far off."""
    torch.manual_seed(rows)
    spec = QuantSpec(dtype=f"int{bits}", granularity="group:32")
    codes = RoundToNearest(RtnConfig()).quantize(
        torch.randn(rows, features), spec, WeightContext()
    )
    left, right = torch.randn(rows, 3).to(dtype), torch.randn(3, features).to(dtype)
    return compact(replace(codes, repair=Repair(left, right)))


def transposed(weight: QuantizedTensor) -> QuantizedTensor:
    """The same weight stored as (inputs, outputs)."""
    assert weight.repair is not None
    params = replace(weight.params, axis=1)
    repair = replace(weight.repair, axis=1)
    return QuantizedTensor(weight.codes.t().contiguous(), params, None, repair)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_linear_layer_and_its_gradient(
    dtype: torch.dtype, is_transposed: bool
) -> None:
    weight = repaired(33, 64, dtype)
    stored = transposed(weight) if is_transposed else weight
    bias, factors = torch.randn(33), torch.rand(64) + 0.5
    layer = WeightOnlyLinear(
        stored,
        bias,
        torch.float32,
        transposed=is_transposed,
        factors=factors,
        then="relu",
    )
    whole = weight.dequantize() * factors
    x = torch.randn(5, 7, 64, requires_grad=True)
    wanted = torch.relu(x @ whole.t() + bias)
    (wanted_gradient,) = torch.autograd.grad(wanted.square().sum(), x)
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-3, atol=1e-1)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-3)
        shown = layer.decoded_weight()
        torch.testing.assert_close(shown.t() if is_transposed else shown, whole)
        again = pickle.loads(pickle.dumps(layer))
        torch.testing.assert_close(again(x), layer(x))
        twin = copy.deepcopy(layer).to(torch.bfloat16)
        close = twin(x.to(torch.bfloat16)).float()
        torch.testing.assert_close(close, wanted, rtol=0.1, atol=1.0)


def test_the_four_bit_kernel_takes_the_codes_and_the_repair_is_added() -> None:
    weight = repaired(64, 64, bits=4)
    layer = WeightOnlyLinear(weight, None, torch.float32)
    x = torch.randn(5, 64)
    wanted = x @ weight.dequantize().t()
    with torch.no_grad():
        error = (layer(x) - wanted).norm() / wanted.norm()
    assert float(error) < 0.02


def test_a_table() -> None:
    weight = repaired(40, 64, torch.float16)
    table = WeightOnlyEmbedding(weight, torch.float32)
    ids = torch.tensor([[3, 39], [0, 3]])
    torch.testing.assert_close(table(ids), weight.dequantize()[ids])


# Whole models


class Shared(nn.Module):
    """q, k and v of one input, as a block has them, and a head that is tied to the table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(48, 64)
        self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))
        self.head = nn.Linear(64, 48, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        mixed = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1) @ self.v(x)
        result: torch.Tensor = self.head(mixed)
        return result


IDS = [torch.randint(0, 48, (3, 9), generator=torch.Generator().manual_seed(0))]


def test_each_of_q_k_and_v_has_its_own_repair_and_a_tied_weight_one() -> None:
    ops = ("embed", "q", "k", "v", "head")
    recipe = Recipe(dict.fromkeys(ops, SCHEME), (), "torch")
    made = octavo.quantize_model(Shared().eval(), recipe, IDS)
    own = made.candidate.parameters
    assert own["head"].weight is own["embed"].weight
    repairs = [own[name].weight.repair for name in ("q", "k", "v")]
    assert len({float(r.right.float().sum()) for r in repairs}) == 3
    head, embed = (made.model.get_submodule(n) for n in ("head", "embed"))
    assert head.weight_codes.left is embed.weight_codes.left
    remark = made.ledger["q"].reason
    assert "low-rank repair of rank 4, 1,024 bytes" in remark
    # A tied weight's factors are written once.
    sizes = made.candidate.bytes_by_op()
    assert sizes["embed"] == own["embed"].weight.nbytes
    assert sizes.get("head", 0) == 0
    float_twin = Shared().eval()
    for name, parameters in own.items():
        float_twin.get_submodule(name).weight.data = parameters.weight.dequantize()
    with torch.no_grad():
        wanted, got = float_twin(IDS[0]), made.model(IDS[0])
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_gpt2s_layers_that_store_inputs_first(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=48, n_positions=16, n_embd=64, n_layer=1, n_head=2
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    whole = PartChoice(kind="low_rank", options=(("dtype", "float32"), ("rank", 999)))
    ops = [f"transformer.h.0.{n}" for n in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj")]
    scheme = SCHEME.variant(refined_by=(whole,))
    recipe = Recipe(dict.fromkeys(ops, scheme), (), "torch")
    made = octavo.quantize_model(model, recipe, [{"input_ids": IDS[0]}])
    with torch.no_grad():
        wanted = model(input_ids=IDS[0]).logits
        got = made.model(input_ids=IDS[0]).logits
        made.save(tmp_path)
        again = octavo.load(tmp_path)(input_ids=IDS[0]).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, got)


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic", "w4a8-static"])
def test_integer_products_with_a_repair_beside_them(name: str, tmp_path: Path) -> None:
    """Layers that pass codes to each other, with an activation function that is taken in."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 32)
    ).eval()
    x = torch.randn(64, 64)
    plain = octavo.quantize_model(model, name, [x])
    whole = f"{name}+low-rank(rank=999, dtype=float32)"
    made = octavo.quantize_model(model, whole, [x])
    assert {line.realization for line in made.ledger.values()} == {"kernel"}
    # The repair makes the weights whole: what is left is the rounding of inputs.
    own = made.candidate.parameters
    for path in ("0", "2", "4"):
        weight = model.get_submodule(path).weight
        shown = made.model.get_submodule(path).decoded_weight()
        torch.testing.assert_close(shown, weight.detach(), rtol=1e-4, atol=1e-5)
        assert isinstance(made.model.get_submodule(path), RepairedInt8Linear)
        assert own[path].weight.repair is not None
    with torch.no_grad():
        wanted, before, after = model(x), plain.model(x), made.model(x)
        assert float((after - wanted).norm()) < 0.9 * float((before - wanted).norm())
        made.save(tmp_path)
        torch.testing.assert_close(octavo.load(tmp_path, model=model)(x), after)
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(made.model(given).sum(), given)
    float_input = x.clone().requires_grad_()
    (float_gradient,) = torch.autograd.grad(model(float_input).sum(), float_input)
    close = torch.nn.functional.cosine_similarity(gradient, float_gradient, -1)
    assert float(close.mean()) > 0.95


def test_calibration_decides_what_is_repaired() -> None:
    """Inputs on a few channels alone: the repair spends its rank there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48)).eval()
    x = torch.randn(64, 64) * (torch.arange(64) < 4) * 10
    losses = []
    for source in ("gram", "weights"):
        step = PartChoice(kind="low_rank", options=(("rank", 4), ("source", source)))
        recipe = Recipe({"0": SCHEME.variant(refined_by=(step,))}, (), "torch")
        made = octavo.quantize_model(model, recipe, [x])
        with torch.no_grad():
            losses.append(float((made.model(x) - model(x)).norm()))
    assert losses[0] < 0.05 * losses[1]


# What goes over it, and what cannot hold it


def made_of(model: nn.Module) -> Any:
    recipe = Recipe(dict.fromkeys(("q", "k", "v"), SCHEME), (), "torch")
    return octavo.quantize_model(model, recipe, IDS)


def test_updates_are_trained_over_a_repaired_base() -> None:
    made = made_of(Shared().eval())
    base = made.model.get_submodule("q")
    assert isinstance(base, WeightOnlyLinear)
    update = LowRankLinear(base, LowRank(rank=2))
    x = torch.randn(4, 64)
    torch.testing.assert_close(update(x), base(x))
    wanted = torch.randn(4, 64)
    optimizer = torch.optim.Adam(update.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (update(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    held = base.weight_codes
    assert held.left is not None
    assert not held.left.requires_grad


@pytest.mark.parametrize("kind", [LearnedLinear, SignedLinear])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_what_is_learned_goes_on_from_the_repair_and_keeps_it(
    kind: type[LearnedLinear] | type[SignedLinear], is_transposed: bool
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(33, 64)
    gram = torch.eye(64)
    settings = LowRankRepairConfig(rank=4)
    context = WeightContext(gram=gram, count=1)
    start = LowRankRepair(settings).quantize(weight, INT2, context)
    if is_transposed:
        start, weight = transposed(start), weight.t().contiguous()
    layer = kind(weight, None, start, transposed=is_transposed)

    def numbers(tensor: QuantizedTensor) -> torch.Tensor:
        whole: torch.Tensor = tensor.dequantize()
        return whole.t() if is_transposed else whole

    torch.testing.assert_close(
        layer.quantized_weight(), numbers(start), atol=1e-5, rtol=1e-5
    )
    with torch.no_grad():
        layer.offset.uniform_(-0.5, 0.5)
    learned = layer.result(start)
    assert learned.repair is start.repair
    torch.testing.assert_close(
        layer.quantized_weight(), numbers(learned), atol=1e-5, rtol=1e-5
    )
    assert not torch.equal(learned.codes, start.codes)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = Shared().eval()
    made = made_of(model)
    made.save(tmp_path)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["op:q:left"] = tensors["op:q:left"][:, :2].contiguous()
    save_file(tensors, file)
    with pytest.raises(ModelError, match="repair of 'q'"):
        octavo.load(tmp_path, model=model)


def test_checkpoints_of_other_tools_have_no_place_for_it(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from examples import tiny_llama

    model = tiny_llama.model(updates=0)
    recipe = Recipe({"model.layers.0.mlp.up_proj": SCHEME}, (), "torch")
    made = octavo.quantize_model(model, recipe, [{"input_ids": IDS[0]}])
    for kind in ("gptq", "compressed-tensors"):
        with pytest.raises(SchemeError, match="low-rank repair has no place"):
            made.export(kind, tmp_path / kind)
