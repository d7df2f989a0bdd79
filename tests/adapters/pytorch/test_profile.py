"""Time and bytes of each op of a PyTorch model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from octavo.core.values.layers import REST
from tests.helpers import opened_torch, preset_candidate

from .test_tied import BOTH, IDS, Tied


def sleepy(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
    time.sleep(0.01)


def stored_bytes(folder: Path) -> int:
    tensors = load_file(folder / "model.safetensors")
    return sum(tensor.nbytes for tensor in tensors.values())


@BOTH
@pytest.mark.parametrize(
    "preset", ["int8-dynamic", "int8-static", "int4-weight-only", "bfloat16"]
)
def test_bytes_are_those_of_the_file_and_a_tied_weight_counts_once(
    model: Tied, preset: str, tmp_path: Path
) -> None:
    batch = (IDS[0].numpy(),)
    candidate = preset_candidate(opened_torch(model, batch), preset, [batch])
    found = candidate.bytes_by_op()
    candidate.save(tmp_path)
    assert sum(found.values()) == stored_bytes(tmp_path)
    assert found.get(REST, 0) == 0
    users = [found[op] for op in ("embed", "head") if op in found]
    # One of them holds the codes; the other at most what is its own.
    assert max(users) >= 96 * 64 // 2
    assert sum(users) < 2 * max(users)


def test_times_are_those_of_modules_and_the_hooks_are_taken_off() -> None:
    model = nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8)
    )
    model[3].register_forward_pre_hook(sleepy)
    x = torch.randn(4, 8)
    batch = (x.numpy(),)
    opened = opened_torch(model.eval(), batch)
    candidate = preset_candidate(opened, "int8-static", [batch])
    found = candidate.profile(batch, 0.05)
    ops = {op.name for op in opened.view.ops}
    assert set(found) == {*ops, REST}
    slowest = max(found, key=lambda op: found[op])
    assert slowest == "3"
    # Its hook is part of what it costs.
    assert found["3"] >= 10
    for module in candidate.native.modules():
        assert "stop" not in {f.__name__ for f in module._forward_hooks.values()}


def test_quantizing_an_input_counts_with_the_layer_that_reads_it() -> None:
    model = nn.Sequential(nn.Linear(256, 8), nn.Linear(8, 8)).eval()
    x = torch.randn(2048, 256)
    batch = (x.numpy(),)
    candidate = preset_candidate(opened_torch(model, batch), "int8-static", [batch])
    found = candidate.profile(batch, 0.1)
    assert found["0"] > found["1"]


def test_a_module_of_no_known_place_has_no_figures(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    batch = (torch.randn(2, 8).numpy(),)
    reference = opened_torch(model, batch).session.reference()
    assert reference.profile(batch, 0.01) == {}
    assert reference.bytes_by_op() == {}
