"""One tensor that an embedding and a head share: one decision, quantized once, stored once."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import octavo
from octavo.adapters.pytorch import TorchConfig
from octavo.adapters.pytorch.adapter import TorchAdapter
from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.training import Distillation
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.sensitivity.service import SensitivityService
from tests.helpers import as_opened, torch_session

IDS = (torch.arange(12).view(3, 4),)
ROWS, WIDTH = 96, 64


class Tied(nn.Module):
    """A graph that torch.fx traces."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(ROWS, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, ROWS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.middle(self.embed(ids))))


class Untraced(Tied):
    """A module tree: its forward has an optional argument."""

    def forward(self, ids: torch.Tensor, more: bool = False) -> torch.Tensor:
        return super().forward(ids)


BOTH = pytest.mark.parametrize("model", [Tied(), Untraced()], ids=["graph", "modules"])
PRESETS = pytest.mark.parametrize(
    "preset",
    ["int8-dynamic", "int8-static", "int8-weight-only", "int4-weight-only", "bfloat16"],
)


def stored(module: nn.Module) -> int:
    """Return the bytes of a module's distinct storages."""
    return sum(
        {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in module.state_dict().values()
        }.values()
    )


@BOTH
@PRESETS
def test_the_weight_is_stored_once(
    model: nn.Module, preset: str, tmp_path: Path
) -> None:
    result = octavo.quantize_model(model, preset, calibration=[IDS])
    parameters = result.candidate.parameters
    assert parameters["head"].weight is parameters["embed"].weight
    values = parameters["head"].weight.dequantize()
    embed, head = (
        result.model.get_submodule("embed"),
        result.model.get_submodule("head"),
    )
    torch.testing.assert_close(embed(IDS[0]), values[IDS[0]], check_dtype=False)
    with torch.no_grad():
        x = torch.tanh(
            model.get_submodule("middle")(model.get_submodule("embed")(IDS[0]))
        )
        got, expected = head(x), x @ values.t().float()
    assert float((got - expected).abs().max()) < 0.05 * float(expected.abs().max())
    once = parameters["head"].weight.nbytes + parameters["middle"].weight.nbytes
    assert stored(result.model) < once + 4096
    result.candidate.save(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < once + 4096
    loaded = TorchAdapter(TorchConfig()).load(tmp_path, type(model))
    assert stored(loaded.module) < once + 4096
    np.testing.assert_array_equal(loaded.run(IDS)[0], result.candidate.run(IDS)[0])
    assert stored(copy.deepcopy(result.model)) < once + 4096


@BOTH
def test_stored_codes_stay_tied_on_their_way_to_another_process_or_device(
    model: nn.Module,
) -> None:
    result = octavo.quantize_model(model, "int4-weight-only", calibration=[IDS])
    for moved in (
        pickle.loads(pickle.dumps(result.model)),
        result.model.to(torch.device("meta")),
    ):
        assert (
            moved.get_submodule("embed").weight_codes
            is moved.get_submodule("head").weight_codes
        )


@pytest.mark.parametrize(("kept", "other"), [("head", "embed"), ("embed", "head")])
def test_one_of_them_in_float_is_a_second_copy_and_the_ledger_says_so(
    kept: str, other: str
) -> None:
    config = {
        "rules": [
            {"ops": ["embed", "head"], "mode": "weight_only"},
            {"ops": [kept], "keep": "float"},
        ]
    }
    result = octavo.quantize_model(Tied(), config, calibration=[IDS])
    assert set(result.candidate.parameters) == {"middle", other}
    size = result.candidate.parameters[other].weight.nbytes
    assert result.candidate.ledger[other].reason == (
        f"its weight is tied to that of {kept!r}, which stays float: a copy of its own, {size:,} "
        "bytes"
    )
    assert any("each decides alone" in note for note in result.notes)
    assert result.model.get_submodule(kept).weight.numel() == ROWS * WIDTH


def test_every_sensitivity_knows_what_the_embedding_takes() -> None:
    session = torch_session(Tied(), IDS)
    opened = as_opened(session)
    space = build_space(opened)
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    realizer.calibrate([IDS])
    service = SensitivityService(opened, realizer, [IDS])
    pairs = [
        ("head", s)
        for s in space.by_name["head"].choices
        if s.mode in ("static", "dynamic")
    ][:4]
    assert pairs
    for kind in service.kinds:
        found = service(kind, pairs)
        assert all(0 < value < 1 for value in found), (kind, service.failures)


def test_distillation_leaves_a_tied_weight_as_it_is() -> None:
    session = torch_session(Tied(), IDS)
    opened = as_opened(session)
    space = build_space(opened)
    parameters = Realizer(opened, space, PluginHost(third_party=False)).parameters(
        preset_recipe("int4-weight-only", space, opened)
    )
    learned = session.training().distill(parameters, [IDS], Distillation(steps=2))
    assert (
        learned["head"].weight is learned["embed"].weight is parameters["head"].weight
    )
    assert learned["middle"] is not parameters["middle"]
