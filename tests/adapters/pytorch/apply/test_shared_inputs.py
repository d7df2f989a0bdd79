"""Layers that read one value: one product for few rows, and nothing that a reader could notice."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.apply.shared_inputs import share, stack
from octavo.adapters.pytorch.kernels import fbgemm
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.kernels.layouts import layouts
from octavo.adapters.pytorch.qlayers.int8 import Int8Linear
from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.plugins import PluginHost
from octavo.core.quantizing.algorithms.rtn import RoundToNearest
from octavo.core.values.scheme import QuantSpec
from tests.helpers import opened_torch, preset_candidate

pytestmark = pytest.mark.skipif(
    bool(fbgemm.missing_rows()), reason=fbgemm.missing_rows()
)


def layers(static: bool, x: torch.Tensor) -> list[Int8Linear]:
    """Three layers of different widths, the second without a bias, the third with an activation
    function."""
    torch.manual_seed(0)
    form, factors = (
        (Activation.around(x, symmetric=False) if static else None),
        torch.rand(64) + 0.5,
    )
    rtn, made = (
        RoundToNearest(PluginHost(third_party=False).read("algorithms", "rtn")),
        [],
    )
    for outputs, bias, then, spec in (
        (48, True, "", "channel"),
        (16, False, "", "tensor"),
        (32, True, "gelu", "channel"),
    ):
        # In reach of every CPU: whole bytes are computed in float32 where the kernels would
        # saturate.
        reach = QuantSpec(dtype="int8", granularity=spec, reduce_range=True)
        weight = rtn.quantize(torch.randn(outputs, 64), reach, WeightContext())
        one = Int8Linear(
            weight,
            torch.randn(outputs) if bias else None,
            torch.float32,
            form,
            then=then,
            factors=factors,
        )
        made.append(one.eval())
    return made


def static(model: nn.Module, batch: Any) -> Any:
    """The candidate of the int8 static preset."""
    return preset_candidate(opened_torch(model, batch), "int8-static", [batch])


def kernels_run(run: object, *args: torch.Tensor) -> int:
    """How many products of few rows a call takes."""
    with torch.profiler.profile() as seen:
        run(*args)  # type: ignore[operator]
    return sum(
        e.count
        for e in seen.key_averages()
        if "linear_with_input_q_dq" in e.key or "linear_dynamic" in e.key
    )


@pytest.mark.parametrize("static", [True, False])
def test_one_product_gives_what_each_layer_gives_alone(static: bool) -> None:
    x = torch.randn(2, 5, 64)
    alone = [layer(x) for layer in layers(static, x)]
    together = layers(static, x)
    share(("x", layer) for layer in together)
    assert kernels_run(lambda: [layer(x) for layer in together]) == 1
    for layer, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


def test_results_are_memory_of_their_own_and_given_once() -> None:
    x = torch.randn(5, 64)
    query, key, value = layers(True, x)
    stack([query, key, value])
    expected = [layer(x).clone() for layer in (query, key, value)]
    first = query(x)
    assert first.is_contiguous()
    first.zero_()
    torch.testing.assert_close(key(x), expected[1])
    torch.testing.assert_close(query(x), expected[0])
    torch.testing.assert_close(value(x), expected[2])


def test_an_input_that_was_changed_in_place_is_a_new_one() -> None:
    x = torch.randn(5, 64)
    query, key, value = layers(True, x)
    alone = copy.deepcopy(key)
    stack([query, key, value])
    with torch.no_grad():
        query(x)
        x.mul_(0.5)
        torch.testing.assert_close(key(x), alone(x))
        y = x.clone()
        torch.testing.assert_close(key(y), alone(y))
    with torch.inference_mode():
        z = torch.randn(5, 64)
        query(z)
        z.mul_(0.5)
        torch.testing.assert_close(key(z), alone(z))


def test_the_result_is_let_go_when_the_last_layer_has_read_it() -> None:
    x = torch.randn(5, 64)
    made = layers(True, x)
    joint = stack(made)
    for layer in made:
        layer(x)
    assert joint._entry is None


def test_layers_that_are_called_with_other_values_are_left_to_themselves() -> None:
    x = torch.randn(5, 64)
    query, key, value = layers(True, x)
    alone = copy.deepcopy(key)
    stack([query, key, value])
    for _ in range(9):
        query(x + 0)
        torch.testing.assert_close(key(x), alone(x))
    assert kernels_run(lambda: [query(x), key(x)]) == 2
    assert any("rows" in made for made in layouts(key.codes))


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "pickle"],
)
def test_copies_have_a_stack_of_their_own(again: object) -> None:
    x = torch.randn(5, 64)
    model = nn.ModuleList(layers(True, x))
    joint = stack(list(model))  # type: ignore[arg-type]
    expected = [layer(x) for layer in model]
    twin = again(model)  # type: ignore[operator]
    assert twin[0].stacked[0] is twin[2].stacked[0] is not joint
    assert kernels_run(lambda: [layer(x) for layer in twin]) == 1
    for layer, y in zip(twin, expected, strict=True):
        torch.testing.assert_close(layer(x), y, rtol=0, atol=0)


def test_loaded_weights_are_laid_out_anew() -> None:
    x = torch.randn(5, 64)
    model, other = nn.ModuleList(layers(True, x)), nn.ModuleList(layers(True, x))
    other[1].codes.neg_()
    expected = [layer(x) for layer in other]
    stack(list(model))  # type: ignore[arg-type]
    for layer in model:
        layer(x)
    model.load_state_dict(other.state_dict())
    for layer, y in zip(model, expected, strict=True):
        torch.testing.assert_close(layer(x), y, rtol=1e-6, atol=1e-6)


def test_weights_that_were_written_to_are_laid_out_anew() -> None:
    x = torch.randn(5, 64)
    query, key, value = layers(True, x)
    stack([query, key, value])
    first = [layer(x) for layer in (query, key, value)]
    key.codes.neg_()
    query(x)
    torch.testing.assert_close(key(x), -first[1])
    torch.testing.assert_close(query(x), first[0])


def test_few_rows_of_a_traced_model_are_quantized_inside_the_kernel() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (
                nn.Linear(64, 32),
                nn.Linear(64, 32),
                nn.Linear(32, 8),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.tanh(self.a(x) * self.b(x)))

    torch.manual_seed(0)
    few, many = torch.randn(4, 64), torch.randn(500, 64)
    candidate = static(Net().eval(), (many,))
    assert isinstance(candidate.native, torch.fx.GraphModule)
    assert kernels_run(lambda: candidate.native(few)) == 2
    assert kernels_run(lambda: candidate.native(many)) == 0
    padded = torch.cat([few, many])
    torch.testing.assert_close(
        candidate.native(few), candidate.native(padded)[:4], rtol=1e-4, atol=1e-4
    )


def test_a_model_with_query_key_and_value_stacks_them() -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            vocab_size=99,
        )
    ).eval()
    batch = {"input_ids": torch.randint(99, (2, 8))}
    candidate = static(model, batch)
    layer = candidate.native.encoder.layer[0].attention.self
    assert layer.query.stacked[0] is layer.key.stacked[0] is layer.value.stacked[0]
    assert kernels_run(lambda: candidate.run(batch)) == 2 * (1 + 3) + 1
