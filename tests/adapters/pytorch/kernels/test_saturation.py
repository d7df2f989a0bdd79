"""CPUs without VNNI add 8-bit products in 16 bits: layers are right on them too, and on
all others."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from octavo.adapters.pytorch.kernels import saturation
from octavo.core.values.ledger import REDUCED

LOUD = 4.0
"""Weights of one sign and magnitude against inputs at the end of their range: what saturates most.
"""


def loud_network() -> nn.Sequential:
    """Return a network all of whose products are at the end of their range."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 36, 64),
        nn.ReLU(),
        nn.Linear(64, 8),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.abs() + LOUD * parameter.abs().max())
    return network.eval()


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic"])
def test_products_at_the_end_of_their_range_are_right(scheme: str) -> None:
    network, batches = loud_network(), [torch.rand(8, 3, 6, 6) for _ in range(4)]
    made = octavo.quantize_model(network, scheme, calibration=batches)
    with torch.no_grad():
        got, want = made.model(batches[0]), network(batches[0])
    # Seven bits of range cost 1 / 126 of a weight at most; saturated sums were 15 to 40 % off.
    assert relative(got, want) < 0.02
    assert all(line.honoured for line in made.ledger.values())
    reduced = [REDUCED in line.reason for line in made.ledger.values()]
    assert all(reduced) if saturation.saturates() else not any(reduced)


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic"])
def test_codes_of_another_machine_are_computed_without_saturating(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, batches = loud_network(), [torch.rand(8, 3, 6, 6) for _ in range(4)]
    want = network(batches[0]).detach()
    with monkeypatch.context() as elsewhere:
        # A CPU with VNNI: whole bytes are stored.
        elsewhere.setattr("octavo.adapters.pytorch.offers.saturates", lambda: "")
        from octavo.adapters.pytorch.offers import capability

        capability.cache_clear()
        try:
            made = octavo.quantize_model(network, scheme, calibration=batches)
        finally:
            capability.cache_clear()
    assert max(int(c.abs().max()) for c in _codes(made.model)) == 127
    made.save(tmp_path / "result")
    loaded = octavo.load(tmp_path / "result", model=loud_network())
    again = pickle.loads(pickle.dumps(loaded))
    for model in (made.model, loaded, again):
        with torch.no_grad():
            assert relative(model(batches[0]), want) < 0.02


def test_a_rule_may_ask_for_the_reduced_range_on_any_machine() -> None:
    network, batches = loud_network(), [torch.rand(8, 3, 6, 6)]
    rules = [{"mode": "static", "weight": {"dtype": "int8", "reduce_range": True}}]
    made = octavo.quantize_model(network, {"rules": rules}, calibration=batches)
    assert max(int(c.abs().max()) for c in _codes(made.model)) == 63
    assert all(
        line.applied.weight.reduce_range
        for line in made.ledger.values()
        if line.applied.weight
    )


def _codes(model: nn.Module) -> list[torch.Tensor]:
    return [
        module.codes.int() for module in model.modules() if hasattr(module, "codes")
    ]
