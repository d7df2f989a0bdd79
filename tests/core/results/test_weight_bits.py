"""octavo.json says how many bits of the file a weight takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import octavo


class Model(nn.Module):
    """A table that is the head too, a layer that is quantized and one that stays float."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 64)
        self.body = nn.Linear(64, 64)
        self.kept = nn.Linear(64, 64)
        self.head = nn.Linear(64, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.kept(torch.relu(self.body(self.table(ids)))))


RULES = [
    {"mode": "weight_only", "weight": {"dtype": "uint3", "granularity": "group:32"}},
    {"ops": "kept", "keep": "float"},
]


@pytest.mark.parametrize("repaired", [False, True])
def test_bits_are_those_of_the_files_tensors(repaired: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rules = [dict(rule) for rule in RULES]
    if repaired:
        rules[0]["algorithm"] = [
            ["rtn", {"kind": "low_rank", "rank": 4, "source": "weights"}]
        ]
    made = octavo.quantize_model(
        Model().eval(), {"rules": rules}, [np.arange(8).reshape(2, 4)]
    )
    folder = made.save(tmp_path / "out")
    tensors = load_file(folder / "model" / "model.safetensors")
    named = tensors.items()
    quantized = sum(t.nbytes for name, t in named if name.startswith("op:"))
    quantized -= sum(t.nbytes for name, t in named if name.endswith(":bias"))
    # The tied table is there once.
    count = 40 * 64 + 64 * 64
    told = json.loads((folder / "octavo.json").read_text())["bits_per_weight"]
    assert told == pytest.approx(
        {
            "quantized": 8 * quantized / count,
            "all": (8 * quantized + 32 * 64 * 64) / (count + 64 * 64),
        }
    )
    assert made.bits_per_weight == told


def test_a_model_that_stays_float_has_its_own_bits() -> None:
    model = Model().to(torch.bfloat16).eval()
    made = octavo.quantize_model(model, "float", [np.arange(8).reshape(2, 4)])
    assert made.bits_per_weight == {"all": 16}
