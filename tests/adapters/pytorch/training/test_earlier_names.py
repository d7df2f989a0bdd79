"""Names of training that earlier documentation told users to import do what the door does."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from octavo.adapters.pytorch import peft_layers, qlora
from octavo.adapters.pytorch.qat import QuantizationAwareTraining
from octavo.adapters.pytorch.training import peft_layers as own_peft
from octavo.core.contract.adapter import OpParameters
from octavo.core.contract.training import LowRank
from octavo.core.errors import SchemeError
from octavo.core.opening.rules import Rule
from tests.adapters.pytorch.training.test_training import TWO_BITS, prepared, stack

STATIC = Rule(types="linear", mode="static")


def test_a_model_trained_by_the_earlier_name_comes_back_on_its_kernels() -> None:
    model, batches = stack()
    session, recipe, parameters = prepared(model, batches, STATIC)
    training = QuantizationAwareTraining(session, recipe, parameters)
    (x,) = batches[0]
    wanted = torch.zeros(8, 4, 16)
    before = ((training.module(x) - wanted) ** 2).mean()
    optimizer = torch.optim.Adam(training.module.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        ((training.module(x) - wanted) ** 2).mean().backward()
        optimizer.step()
    converted = training.convert()
    with torch.no_grad():
        after = ((converted.native(x) - wanted) ** 2).mean()
    assert after < 0.5 * before
    assert all(not line.applied.is_float for line in converted.ledger.values())


def codes(parameters: Mapping[str, OpParameters]) -> dict[str, torch.Tensor]:
    weights = {name: p.weight for name, p in parameters.items()}
    return {name: w.dequantize() for name, w in weights.items() if w is not None}


@pytest.mark.parametrize("name", ["reconstruct", "distill"])
def test_sessions_learn_by_their_earlier_methods_what_the_door_learns(
    name: str,
) -> None:
    model, batches = stack()
    session, _, parameters = prepared(model, batches, TWO_BITS)
    earlier = codes(getattr(session, name)(parameters, batches))
    door = codes(getattr(session.training(), name)(parameters, batches))
    start = codes(parameters)
    assert any(not torch.equal(earlier[op], start[op]) for op in start)
    assert all(torch.equal(earlier[op], door[op]) for op in start)


def test_updates_by_their_earlier_name_start_at_nothing_and_have_the_rank_asked_for() -> (
    None
):
    model, batches = stack()
    session, recipe, parameters = prepared(model, batches, TWO_BITS)
    base = session.apply(recipe, parameters)
    updated = qlora.add_adapters(base, 3, ops=["head"])
    door = session.training().add_low_rank(base, LowRank(rank=3, ops=("head",)))
    shapes = [tuple(p.shape) for p in updated.parameters() if p.requires_grad]
    assert shapes == [(3, 32), (16, 3)]
    assert shapes == [tuple(p.shape) for p in door.parameters() if p.requires_grad]
    with torch.no_grad():
        assert torch.equal(updated(*batches[0]), base.native(*batches[0]))
    with pytest.raises(SchemeError, match="nowhere"):
        qlora.add_adapters(base, ops=["nowhere"])


def test_peft_is_found_where_it_was() -> None:
    assert peft_layers.peft_model is own_peft.peft_model
    assert peft_layers.load_peft_model is own_peft.load_peft_model
