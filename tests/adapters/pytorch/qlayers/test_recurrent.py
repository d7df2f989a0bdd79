"""LSTM and GRU layers on integer kernels and on stored weights, against torch's float layers and
against integer arithmetic."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from octavo.adapters.pytorch import TorchConfig
from octavo.adapters.pytorch.adapter import TorchAdapter
from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.sensitivity.service import SensitivityService
from tests.helpers import opened_torch, preset_candidate

CELLS = (nn.LSTM, nn.GRU)
FORMS: list[dict[str, Any]] = [
    {"batch_first": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bias": False},
]


class Tagger(nn.Module):
    """A recurrent network whose state is given and handed on."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], **form: Any) -> None:
        super().__init__()
        self.cell = cell(32, 64, **form)
        self.pair = cell is nn.LSTM
        self.head = nn.Linear(128 if form.get("bidirectional") else 64, 8)

    def forward(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        self.cell.flatten_parameters()
        y, last = self.cell(x, (h, c) if self.pair else h)
        return self.head(y), *(last if self.pair else (last,))


class Lengths(nn.Module):
    """Sequences of different lengths, packed inside the model."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cell = cell(32, 64, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        y, last = self.cell(packed)
        return torch.cat(
            [
                pad_packed_sequence(y, batch_first=True)[0].flatten(),
                (last[0] if isinstance(last, tuple) else last).flatten(),
            ]
        )


def quantized(model: nn.Module, batch: Any, preset: str) -> TorchCandidate:
    o = opened_torch(model, batch)
    rules = [Rule(ops="head", keep="float")] if "head" in o.view.by_name else []
    candidate = preset_candidate(o, preset, rules=rules)
    assert isinstance(candidate, TorchCandidate)
    return candidate


def states(cell: nn.LSTM | nn.GRU, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = cell.num_layers * (2 if cell.bidirectional else 1)
    return torch.randn(count, batch, 64) * 0.3, torch.randn(count, batch, 64) * 0.3


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(f))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("preset", "share"),
    [("int8-dynamic", 0.03), ("int8-weight-only", 0.01), ("int4-weight-only", 0.15)],
)
def test_a_recurrent_layer_is_quantized_saved_and_loaded(
    preset: str,
    share: float,
    cell: type[nn.LSTM] | type[nn.GRU],
    form: dict[str, Any],
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model = Tagger(cell, **form).eval()
    batch = (
        torch.randn(3, 7, 32),
        *states(model.cell, 3 if form.get("batch_first") else 7),
    )
    candidate = quantized(model, batch, preset)
    assert candidate.ledger["cell"].realization == "kernel"
    got = candidate.run(batch)
    with torch.no_grad():
        expected = [t.numpy() for t in model(*batch)]
    for y, y0 in zip(got, expected, strict=True):
        assert y.shape == y0.shape
        assert np.abs(y - y0).max() <= share * np.abs(y0).max()
    candidate.save(tmp_path)
    for twin in (
        TorchAdapter(TorchConfig()).load(tmp_path, Tagger(cell, **form)).native,
        pickle.loads(pickle.dumps(candidate.native)),
    ):
        for y, y0 in zip(twin(*batch), got, strict=True):
            np.testing.assert_allclose(y.detach(), y0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_all_matrices_are_described_and_written_in_eight_bits(
    cell: type[nn.LSTM] | type[nn.GRU], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Tagger(cell, num_layers=2, bidirectional=True).eval()
    batch = (torch.randn(3, 7, 32), *states(model.cell, 7))
    op = opened_torch(model, batch).view.by_name["cell"]
    own = {
        f"cell.{n}": p
        for n, p in model.cell.named_parameters()
        if n.startswith("weight")
    }
    assert op.type == cell.__name__.lower()
    assert [w.name for w in op.weights] == list(own)
    assert [w.shape for w in op.weights] == [tuple(p.shape) for p in own.values()]
    assert op.parameters == sum(p.numel() for p in own.values())
    assert op.macs == 3 * op.parameters  # three steps
    quantized(model, batch, "int8-dynamic").save(tmp_path)
    floats = 4 * sum(
        p.numel()
        for n, p in model.named_parameters()
        if not n.startswith("cell.weight")
    )
    scales = 4 * sum(p.shape[0] for p in own.values())
    overhead = (
        (tmp_path / "model.safetensors").stat().st_size
        - op.parameters
        - floats
        - scales
    )
    assert 0 < overhead < 8000  # the header


@pytest.mark.parametrize("cell", CELLS)
def test_packed_sequences_give_what_the_float_layer_gives(
    cell: type[nn.LSTM] | type[nn.GRU],
) -> None:
    torch.manual_seed(0)
    model, batch = (
        Lengths(cell).eval(),
        (torch.randn(4, 9, 32), torch.tensor([3, 9, 1, 6])),
    )
    for preset, share in (("int8-dynamic", 0.03), ("int8-weight-only", 0.01)):
        got = quantized(model, batch, preset).run(batch)[0]
        expected = model(*batch).detach().numpy()
        assert np.abs(got - expected).max() <= share * np.abs(expected).max()


def test_one_sequence_without_a_batch_axis() -> None:
    torch.manual_seed(0)
    model, x = nn.GRU(32, 64), torch.randn(5, 32)
    y, last = quantized(model, (x,), "int8-dynamic").run((x,))
    y0, last0 = model(x)
    assert y.shape == y0.shape
    assert last.shape == last0.shape
    np.testing.assert_allclose(y, y0.detach(), atol=0.02)


def test_the_integer_cell_is_the_arithmetic_that_its_codes_say() -> None:
    """One step of a GRU by hand: inputs rounded to uint8 on their own range, int8 weights, float
    gates (Cho et al. 2014, as torch has it)."""
    torch.manual_seed(0)
    model, x = nn.GRU(32, 64, bias=False), torch.randn(1, 3, 32)
    candidate = quantized(model, (x,), "int8-dynamic")
    parameters = candidate.parameters["gru"]
    assert parameters.weight is not None
    w, u = (
        parameters.weight.dequantize().double(),
        parameters.further[0].dequantize().double(),
    )
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = (high - low) / 255
    zero = round(-low / step)
    rounded = ((torch.round(x[0] / step) + zero).clamp(0, 255) - zero).double() * step
    _, z, n = (rounded @ w.T).chunk(3, 1)
    assert float((u - model.weight_hh_l0.detach()).abs().max()) < 0.01
    expected = (1 - torch.sigmoid(z)) * torch.tanh(n)  # the state before is zero
    np.testing.assert_allclose(candidate.run((x,))[0][0], expected, atol=2e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_an_exported_program_computes_with_the_stored_weights(
    cell: type[nn.LSTM] | type[nn.GRU],
) -> None:
    torch.manual_seed(0)
    model = Tagger(cell, batch_first=True).eval()
    batch = (torch.randn(3, 7, 32), *states(model.cell, 3))
    candidate = quantized(model, batch, "int8-dynamic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(candidate.native, batch)
    got, expected = (
        program.module()(*batch)[0].detach().numpy(),
        candidate.run(batch)[0],
    )
    assert np.abs(got - expected).max() < 0.03 * np.abs(expected).max()


PROJECTED: list[dict[str, Any]] = [
    {},
    {"batch_first": True, "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("form", PROJECTED, ids=lambda f: "-".join(f) or "plain")
@pytest.mark.parametrize(
    ("preset", "share"),
    [("int8-dynamic", 0.03), ("int8-weight-only", 0.01), ("int4-weight-only", 0.15)],
)
def test_projected_states_run_on_integers_and_are_saved_and_loaded(
    preset: str, share: float, form: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(32, 64, proj_size=32, **form).eval(), torch.randn(3, 7, 32)
    op = opened_torch(model, (x,)).view.ops[0]
    assert [w.shape for w in op.weights[:3]] == [(256, 32), (256, 32), (32, 64)]
    assert op.parameters == sum(
        p.numel() for n, p in model.named_parameters() if n.startswith("weight")
    )
    candidate = quantized(model, (x,), preset)
    assert candidate.ledger["lstm"].realization == "kernel"
    got = candidate.run((x,))
    y0, last0 = model(x)
    for y, expected in zip(got, (y0, *last0), strict=True):
        assert y.shape == tuple(expected.shape)
        assert np.abs(y - expected.detach().numpy()).max() <= share * float(
            expected.abs().max()
        )
    candidate.save(tmp_path)
    loaded = TorchAdapter(TorchConfig()).load(
        tmp_path, lambda: nn.LSTM(32, 64, proj_size=32, **form)
    )
    for y, again in zip(got, loaded.run((x,)), strict=True):
        np.testing.assert_allclose(again, y, rtol=1e-6, atol=1e-6)


def test_a_packed_sequence_of_projected_states_keeps_its_order_and_last_states() -> (
    None
):
    torch.manual_seed(0)
    model, lengths = (
        nn.LSTM(32, 64, proj_size=16, bidirectional=True),
        torch.tensor([2, 5, 3]),
    )
    packed = pack_padded_sequence(torch.randn(5, 3, 32), lengths, enforce_sorted=False)
    given = torch.randn(2, 3, 16) * 0.3, torch.randn(2, 3, 64) * 0.3
    y, last = quantized(model, (torch.randn(5, 3, 32),), "int8-dynamic").native(
        packed, given
    )
    expected, last0 = model(packed, given)
    assert isinstance(y, PackedSequence)
    for a, b in zip((y.data, *last), (expected.data, *last0), strict=True):
        assert float((a - b).abs().max()) < 0.03 * float(b.abs().max())


def test_a_projected_step_is_the_arithmetic_that_its_codes_say() -> None:
    """Two steps by hand (Sak et al. 2014, as torch has it): the inputs' range is the sequence's,
    that of state and cell output the step's."""
    torch.manual_seed(0)
    model, x = nn.LSTM(32, 64, proj_size=16, bias=False), torch.randn(2, 3, 32)
    candidate = quantized(model, (x,), "int8-dynamic")
    parameters = candidate.parameters["lstm"]
    assert parameters.weight is not None
    w, u, p = (
        q.dequantize().double() for q in (parameters.weight, *parameters.further)
    )

    def rounded(v: torch.Tensor) -> torch.Tensor:
        low, high = min(0.0, float(v.min())), max(0.0, float(v.max()))
        step = (high - low) / 255
        zero = round(-low / step)
        return ((torch.round(v / step) + zero).clamp(0, 255) - zero).double() * step

    c, outputs = torch.zeros(3, 64, dtype=torch.float64), []
    for t, source in enumerate(rounded(x)):
        i, f, g, o = (source @ w.T + (rounded(outputs[-1]) @ u.T if t else 0)).chunk(
            4, 1
        )
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        outputs.append(rounded(torch.sigmoid(o) * torch.tanh(c)) @ p.T)
    # One step of a state's code may fall the other way.
    np.testing.assert_allclose(candidate.run((x,))[0], torch.stack(outputs), atol=2e-3)


def test_an_exported_program_of_projected_states_computes_with_the_stored_weights() -> (
    None
):
    torch.manual_seed(0)
    model, x = (
        nn.LSTM(32, 64, proj_size=16, batch_first=True).eval(),
        torch.randn(3, 7, 32),
    )
    candidate = quantized(model, (x,), "int8-dynamic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(candidate.native, (x,))
    got, expected = program.module()(x)[0].detach().numpy(), candidate.run((x,))[0]
    assert np.abs(got - expected).max() < 0.03 * np.abs(expected).max()


def test_sensitivities_count_every_matrix() -> None:
    torch.manual_seed(0)
    x = (torch.randn(4, 3, 32),)
    o = opened_torch(nn.LSTM(32, 64, batch_first=True), x)
    space = build_space(o)
    realizer = Realizer(o, space, PluginHost(third_party=False))
    scheme = next(
        s
        for s in space.tunable[0].choices
        if s.mode == "weight_only" and s.weight and s.weight.bits == 4
    )
    given = realizer.parameters(space.recipe({"lstm": scheme}))["lstm"]
    held = [o.session.tensor(w.name).detach() for w in o.view.ops[0].weights]
    shares = [
        float((w - q.dequantize()).square().sum() / w.square().sum())
        for w, q in zip(held, (given.weight, *given.further), strict=True)
    ]
    got = SensitivityService(o, realizer, [x])("weight_error", [("lstm", scheme)])
    assert got[0] == pytest.approx(sum(shares), rel=1e-4)


def test_a_packed_sequence_keeps_its_order() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(32, 64)
    packed = pack_padded_sequence(
        torch.randn(5, 3, 32), torch.tensor([2, 5, 3]), enforce_sorted=False
    )
    y, _ = quantized(model, (torch.randn(5, 3, 32),), "int8-dynamic").native(packed)
    assert isinstance(y, PackedSequence)
    expected = model(packed)[0]
    np.testing.assert_allclose(
        pad_packed_sequence(y)[0].detach(),
        pad_packed_sequence(expected)[0].detach(),
        atol=0.02,
    )
