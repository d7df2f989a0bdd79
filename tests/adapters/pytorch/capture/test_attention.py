"""Attention of torch.nn: its projections are linear layers, in whatever it sits, and its function
stays what it was."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from octavo.adapters.pytorch import TorchConfig
from octavo.adapters.pytorch.adapter import TorchAdapter
from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.capture.standins.attention import (
    Attention,
    with_linear_projections,
)
from octavo.core.values.recipe import Recipe
from tests.helpers import opened_torch, preset_candidate

PADDED = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
PRESETS = ("int8-static", "int8-dynamic", "int8-weight-only", "int4-weight-only")


def layer(**more: Any) -> dict[str, Any]:
    return {
        "d_model": 32,
        "nhead": 4,
        "dim_feedforward": 64,
        "batch_first": True,
        **more,
    }


class Encoder(nn.Module):
    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.body = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**layer(**more)), 2
        )

    def forward(self, x: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
        return self.body(x, src_key_padding_mask=padded)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**layer(norm_first=True)), 2
        )

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return self.body(
            x,
            memory,
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(6),
            tgt_is_causal=True,
        )


class Pooled(nn.Module):
    """A convolution and an attention in one graph that fx can trace."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(32, 32, 3, padding=1), nn.BatchNorm1d(32)
        self.mix = nn.MultiheadAttention(32, 4)
        self.head = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.norm(self.stem(x.transpose(1, 2)))).permute(2, 0, 1)
        y, weights = self.mix(x, x, x)
        return self.head(y), weights


X = torch.linspace(-2, 2, 2 * 6 * 32).sin().view(2, 6, 32)
MODELS = {
    "encoder": (Encoder, (X, PADDED)),
    "encoder, sequence first": (
        lambda: Encoder(batch_first=False, activation="gelu"),
        (X.transpose(0, 1).contiguous(), PADDED),
    ),
    "decoder": (Decoder, (X, X.flip(1))),
    "graph": (Pooled, (X,)),
}


def run(model: nn.Module, batch: Any) -> list[np.ndarray]:
    with torch.no_grad():
        result = model(*batch)
    return [
        t.numpy() for t in ((result,) if isinstance(result, torch.Tensor) else result)
    ]


def quantized(model: nn.Module, batch: Any, preset: str) -> TorchCandidate:
    candidate = preset_candidate(opened_torch(model, batch), preset, [batch])
    assert isinstance(candidate, TorchCandidate)
    return candidate


@pytest.mark.parametrize(
    ("batch_first", "extra", "width", "bias"),
    [*itertools.product((True, False), (True, False), (None, 24), (True, False))],
)
def test_the_stand_in_computes_what_torch_computes(
    batch_first: bool, extra: bool, width: int | None, bias: bool
) -> None:
    torch.manual_seed(0)
    form = {
        "add_bias_kv": extra,
        "add_zero_attn": extra,
        "kdim": width,
        "vdim": width,
        "bias": bias,
        "batch_first": batch_first,
    }
    module = nn.MultiheadAttention(32, 4, **form).eval()
    twin = with_linear_projections(module)
    padded = torch.tensor([[False] * 7, [False] * 5 + [True] * 2, [False] * 6 + [True]])
    queries, keys = torch.randn(3, 5, 32), torch.randn(3, 7, width or 32)
    masks = (None, torch.ones(5, 7).triu(2).bool(), torch.randn(12, 5, 7))
    for batched, mask, weights, average in itertools.product(
        (True, False), masks, (True, False), (True, False)
    ):
        q, k, padding = (
            (queries, keys, padded) if batched else (queries[0], keys[0], padded[1])
        )
        if batched and not batch_first:
            q, k = q.transpose(0, 1), k.transpose(0, 1)
        if mask is not None and mask.dim() == 3 and not batched:
            mask = mask[:4]
        if mask is not None and mask.dtype != torch.bool:
            padding = torch.zeros(padding.shape).masked_fill_(padding, -torch.inf)
        call = {
            "key_padding_mask": padding,
            "attn_mask": mask,
            "need_weights": weights,
            "average_attn_weights": average,
        }
        with torch.no_grad():
            torch.testing.assert_close(
                twin(q, k, k, **call), module(q, k, k, **call), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("name", MODELS)
def test_projections_are_quantized_saved_and_loaded(name: str, tmp_path: Path) -> None:
    make, batch = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    expected = run(model, batch)
    o = opened_torch(model, batch)
    (tmp_path / "float").mkdir()
    o.session.reference().save(tmp_path / "float")
    again = TorchAdapter(TorchConfig()).load(tmp_path / "float", make())
    for reference in (o.session.reference(), again):  # on torch's own fused paths
        assert not any(isinstance(m, Attention) for m in reference.native.modules())
        for y, y0 in zip(reference.run(batch), expected, strict=True):
            np.testing.assert_allclose(y, y0, rtol=1e-4, atol=1e-6)
    for y, y0 in zip(
        o.session.apply(Recipe(backend="torch"), {}).run(batch), expected, strict=True
    ):
        np.testing.assert_allclose(y, y0, rtol=1e-4, atol=1e-5)
    linear = {op.name for op in o.view.ops if op.type == "linear"}
    projections = {
        n for n in linear if n.endswith(("q_proj", "k_proj", "v_proj", "out_proj"))
    }
    assert len(projections) == 4 * sum(
        isinstance(m, nn.MultiheadAttention) for m in model.modules()
    )
    for preset in PRESETS:
        candidate = quantized(model, batch, preset)
        assert linear <= set(candidate.ledger)
        assert all(
            line.realization == "kernel" and line.honoured
            for line in candidate.ledger.values()
        )
        got = candidate.run(batch)
        for y, y0 in zip(got, expected, strict=True):
            assert (
                0
                < np.abs(y - y0).max()
                <= (0.35 if preset.startswith("int4") else 0.06) * np.abs(y0).max()
            )
        folder = tmp_path / preset
        folder.mkdir()
        candidate.save(folder)
        torch.manual_seed(1)
        for twin in (
            TorchAdapter(TorchConfig()).load(folder, make()).native,
            pickle.loads(pickle.dumps(candidate.native)),
        ):
            for y, y0 in zip(run(twin, batch), got, strict=True):
                np.testing.assert_allclose(y, y0, rtol=1e-5, atol=1e-6)


def test_padded_positions_are_zero_where_torchs_encoder_leaves_zeros() -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    with torch.no_grad():
        # Torch 2.x, through nested tensors.
        assert bool((model(X, PADDED)[1, 4:] == 0).all())
    got = quantized(model, (X, PADDED), "int8-dynamic").run((X, PADDED))[0]
    assert (got[1, 4:] == 0).all()
    assert (got[1, :4] != 0).all()


class Parts(nn.Module):
    """Modules by name, each of which is given what the one before makes."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.children():
            x = part(x, x, x)[0] if isinstance(part, nn.MultiheadAttention) else part(x)
        return x


def test_projections_share_the_models_memory_and_ties() -> None:
    model = Parts(a=nn.MultiheadAttention(32, 4), b=nn.MultiheadAttention(32, 4))
    model.b.in_proj_weight = model.a.in_proj_weight
    o = opened_torch(model, None)
    packed = model.a.in_proj_weight
    q, v = (o.session.tensor(f"a.{n}.weight") for n in ("q_proj", "v_proj"))
    assert q.data_ptr() == packed.data_ptr()
    assert v.data_ptr() == packed[64:].data_ptr()
    weight = o.view.by_name["b.q_proj"].weight
    assert weight is not None
    assert weight.shared_with == ("a.q_proj",)
    assert type(model.a) is nn.MultiheadAttention


def test_a_subclass_stays_as_it_is_and_says_so() -> None:
    class Own(nn.MultiheadAttention):
        def forward(
            self, *args: Any, **kwargs: Any
        ) -> Any:  # of its own: nobody knows what it computes
            return super().forward(*args, **kwargs)

    view = opened_torch(Parts(mine=Own(32, 4), head=nn.Linear(32, 8)), None).view
    assert [op.name for op in view.ops] == ["head"]
    assert any("mine (Own)" in note for note in view.notes)
