"""Weights of shapes that torch takes and no kernel does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo


@pytest.mark.parametrize(
    "scheme", ["int8-static", "int8-dynamic", "int8-weight-only", "int4-weight-only"]
)
def test_a_vector_in_the_place_of_a_matrix_stays_as_it_is(scheme: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1, bias=False)
    ).eval()
    model[2].weight = nn.Parameter(model[2].weight.detach().reshape(-1))
    x = torch.randn(4, 32)
    made = octavo.quantize_model(model, scheme, calibration=[(x,)])
    assert "2" not in made.ledger
    assert not made.ledger["0"].applied.is_float
    with torch.no_grad():
        got, want = made.model(x), model(x)
    assert got.shape == want.shape == (4,)
    assert float((got - want).norm() / want.norm()) < 0.2
