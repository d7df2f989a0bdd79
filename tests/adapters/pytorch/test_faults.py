"""Ordinary models that break other tools, and files that must not be believed."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from octavo.adapters.pytorch import TorchConfig
from octavo.adapters.pytorch.adapter import TorchAdapter
from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.session import TorchSession
from octavo.core.contract.adapter import Batch
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import DeviceError, ModelError, NonFiniteWeight, UnsafeFile
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from tests.helpers import as_opened, opened_torch, preset_candidate, torch_session

X = (torch.linspace(-1, 1, 4 * 64).view(4, 64),)


def session_of(model: nn.Module, batch: Batch = X) -> TorchSession:
    return torch_session(model, batch)


def quantized(
    model: nn.Module, batch: Batch = X, preset: str = "int8-static"
) -> TorchCandidate:
    candidate = preset_candidate(opened_torch(model, batch), preset, [batch])
    assert isinstance(candidate, TorchCandidate)
    return candidate


def near(candidate: TorchCandidate, model: nn.Module, batch: Batch = X) -> None:
    with torch.no_grad():
        expected = model(*batch).float().numpy()
    np.testing.assert_allclose(
        candidate.run(batch)[0], expected, atol=0.05 * np.abs(expected).max()
    )


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(64, 8))
    model[0].weight.data[3, 5] = float("inf")
    with pytest.raises(NonFiniteWeight, match=r"0\.weight"):
        quantized(model)


@pytest.mark.filterwarnings("ignore:value .* was constant")
def test_a_channel_of_zeros_gives_finite_outputs() -> None:
    model = nn.Sequential(nn.Linear(64, 8))
    model[0].weight.data[3] = 0
    near(quantized(model), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", ["int8-static", "int8-dynamic", "int4-weight-only"])
def test_half_precision_models_keep_their_type(dtype: torch.dtype, preset: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32)).to(dtype)
    batch = (X[0].to(dtype),)
    candidate = quantized(model, batch, preset)
    with torch.no_grad():
        y, expected = candidate.native(*batch), model(*batch)
    assert y.dtype == dtype
    assert float((y - expected).abs().max()) < 0.2 * float(expected.abs().max())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        self.head = nn.Linear(64, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


def test_tied_weights_are_quantized_once_and_stay_tied(tmp_path: Path) -> None:
    model, batch = Tied(), (torch.arange(12).view(3, 4),)
    view = session_of(model, batch).describe()
    assert view.by_name["head"].weight is not None
    assert view.by_name["head"].weight.shared_with == ("embed",)
    candidate = quantized(model, batch, "int8-weight-only")
    weights = [p.weight for p in candidate.parameters.values()]
    assert len(weights) == 2
    assert weights[0] is weights[1]
    candidate.save(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 64 * 64 * 1.5
    loaded = TorchAdapter(TorchConfig()).load(tmp_path, Tied)
    np.testing.assert_array_equal(loaded.run(batch)[0], candidate.run(batch)[0])


def test_a_float_candidate_keeps_tied_weights_tied(tmp_path: Path) -> None:
    reference = session_of(Tied(), (torch.arange(4)[None],)).reference()
    reference.save(tmp_path)
    loaded = TorchAdapter(TorchConfig()).load(tmp_path, Tied).native
    assert loaded.head.weight is loaded.embed.weight


def test_weights_that_are_not_contiguous_are_copied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    model[0].weight = nn.Parameter(torch.randn(64, 64).t() / 8)
    batch = (X[0].numpy().copy(order="F"),)
    candidate = quantized(model, batch)
    reference = session_of(model).reference()
    for c in (candidate, reference):
        folder = tmp_path / str(id(c))
        folder.mkdir()
        c.save(folder)
        np.testing.assert_array_equal(
            TorchAdapter(TorchConfig()).load(folder, model).run(batch)[0],
            c.run(batch)[0],
        )


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("mxfp4", 4.25),
        ("mxint8", 8.25),
        ("nf4", 4.5),
        # At most 0.6 bits beside the codes: 8 for each scale of 32, 64 for each 256 scales, and a
        # zero point of the codes' width.
        ("uint2", 2 + 10 / 32 + 0.25 / 32),
        ("uint3", 3 + 11 / 32 + 0.25 / 32),
        ("uint4", 4 + 12 / 32 + 0.25 / 32),
        ("int3", 3 + 8 / 32 + 0.25 / 32),
    ],
)
def test_stored_weights_take_the_room_of_their_bits(
    dtype: str, bits: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    session = session_of(model, (torch.randn(2, 512),))
    o = as_opened(session)
    space = build_space(
        o, [Rule(types="linear", mode="weight_only", weight={"dtype": dtype})]
    )
    candidate = Realizer(o, space, PluginHost(third_party=False)).candidate(
        space.recipe(space.first())
    )
    candidate.save(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size * 8 / 512**2 < bits + 0.05
    loaded = TorchAdapter(TorchConfig()).load(tmp_path, model)
    batch = (torch.randn(3, 512),)
    np.testing.assert_array_equal(loaded.run(batch)[0], candidate.run(batch)[0])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.relu(self.layer(x)))


def test_a_module_that_is_used_twice_takes_one_decision() -> None:
    torch.manual_seed(0)
    model = Twice()
    candidate = quantized(model)
    assert list(candidate.recipe) == ["layer"]
    near(candidate, model)


def test_a_bag_in_a_traced_graph_keeps_its_offsets() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(50, 64)

        def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            return self.bag(ids, offsets)

    torch.manual_seed(0)
    model, batch = Bags(), (torch.arange(12), torch.tensor([0, 5, 7]))
    near(quantized(model, batch, "int8-weight-only"), model, batch)


@pytest.mark.parametrize("preset", ["int8-static", "int4-weight-only"])
def test_hooks_on_layers_and_on_the_model_still_run(preset: str) -> None:
    model, calls = (
        nn.Sequential(nn.Sequential(nn.Linear(64, 64)), nn.Linear(64, 64)),
        [],
    )
    model[1].register_forward_hook(lambda *_: calls.append("layer"))
    model[0].register_forward_hook(lambda *_: calls.append("block"))
    candidate = quantized(model, preset=preset)
    calls.clear()
    candidate.run(X)
    assert calls == ["block", "layer"]


def test_dataparallel_is_unwrapped() -> None:
    model = nn.Sequential(nn.Linear(64, 8))
    assert [op.name for op in session_of(nn.DataParallel(model)).describe().ops] == [
        "0"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DeviceError, match="cuda"):
        TorchAdapter(TorchConfig(device="cuda")).open(nn.Linear(4, 4))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 100:
            x = self.a(x)
        return self.b(x)


def test_control_flow_on_data_is_reported_with_its_line() -> None:
    torch.manual_seed(0)
    model = Branches()
    view = session_of(model).describe()
    assert any("x.sum() > 100" in note for note in view.notes)
    assert any("a" in note and "never reached" in note for note in view.notes)
    near(quantized(model), model)


def test_a_model_without_layers_opens_and_offers_nothing() -> None:
    session = session_of(nn.Sequential(nn.ReLU(), nn.Flatten()))
    assert session.describe().ops == ()
    np.testing.assert_array_equal(session.reference().run(X)[0], torch.relu(X[0]))


def test_training_mode_and_the_users_module_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.9)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    near(quantized(model), nn.Sequential(model[0]))
    assert model.training
    assert type(model[0]) is nn.Linear
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_every_float_tensor_is_shared() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.PReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 8),
    ).eval()
    session = session_of(model, (torch.randn(2, 3, 8, 8),))
    own = {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    assert {
        t.data_ptr()
        for t in [
            *session.reference().native.parameters(),
            *session.reference().native.buffers(),
        ]
    } == own


@pytest.mark.parametrize(
    "preset", ["int8-static", "int8-dynamic", "int4-weight-only", "nf4-weight-only"]
)
def test_candidates_are_deep_copied_pickled_and_given_their_state_again(
    preset: str,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    candidate = quantized(model, preset=preset)
    expected = candidate.run(X)[0]
    for twin in (
        copy.deepcopy(candidate.native),
        pickle.loads(pickle.dumps(candidate.native)),
    ):
        np.testing.assert_array_equal(twin(*X).detach(), expected)
        state = {
            k: torch.zeros_like(v) if v.dtype != torch.int8 else v
            for k, v in candidate.native.state_dict().items()
        }
        twin.load_state_dict(state)
        twin.load_state_dict(candidate.native.state_dict())
        np.testing.assert_array_equal(twin(*X).detach(), expected)


def test_a_folded_network_is_exported_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.Flatten(),
    ).eval()
    batch = (torch.randn(2, 3, 8, 8),)
    candidate = quantized(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(candidate.native, batch)
    expected = candidate.run(batch)[0]
    np.testing.assert_allclose(
        program.module()(*batch).detach(), expected, atol=0.02 * np.abs(expected).max()
    )


@pytest.mark.parametrize("preset", ["int8-static", "int8-dynamic", "int4-weight-only"])
def test_torch_export_gives_the_same_outputs(preset: str) -> None:
    torch.manual_seed(0)
    candidate = quantized(
        nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)), preset=preset
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(candidate.native, X)
    expected = candidate.run(X)[0]
    np.testing.assert_allclose(
        program.module()(*X).detach(), expected, atol=0.03 * np.abs(expected).max()
    )


def test_a_pickled_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 4), tmp_path / "whole.pt")
    with pytest.raises(UnsafeFile, match="pickle"):
        torch_session(tmp_path / "whole.pt")
    torch.save(nn.Linear(4, 4).state_dict(), tmp_path / "state.pt")
    with pytest.raises(ModelError, match="no architecture"):
        torch_session(tmp_path / "state.pt")
    (tmp_path / "junk.pt").write_bytes(b"\x00" * 100)
    with pytest.raises(UnsafeFile, match="damaged"):
        torch_session(str(tmp_path / "junk.pt"))


def test_an_exported_program_needs_trust(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(
            torch.export.export(nn.Linear(64, 4).eval(), X), tmp_path / "m.pt2"
        )
        with pytest.raises(UnsafeFile, match="trust"):
            torch_session(tmp_path / "m.pt2")
        assert TorchAdapter(TorchConfig(trust=True)).open(
            tmp_path / "m.pt2", X
        ).reference().run(X)[0].shape == (4, 4)


@pytest.mark.parametrize("harm", ["truncated", "missing", "version", "other"])
def test_damaged_folders_are_typed_errors(harm: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8))
    quantized(model).save(tmp_path)
    tensors, facts = tmp_path / "model.safetensors", tmp_path / "model.json"
    if harm == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-40])
    elif harm == "missing":
        tensors.unlink()
    elif harm == "version":
        facts.write_text(facts.read_text().replace('"format":', '"format":9'))
    other = (
        nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(4)) if harm == "other" else model
    )
    with pytest.raises(ModelError):
        TorchAdapter(TorchConfig()).load(tmp_path, other)
