"""Transposed convolutions, and batch norms that vanish into the layer before them, in traced graphs
and in module trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from octavo.adapters.pytorch import TorchConfig
from octavo.adapters.pytorch.adapter import TorchAdapter
from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.qlayers.transposed import Int8ConvTranspose
from octavo.core.contract.adapter import Opened
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.spaces import build_space
from tests.helpers import opened_torch, preset_candidate

How = Literal["auto", "modules"]


def quantized(o: Opened, batch: Any, preset: str) -> TorchCandidate:
    candidate = preset_candidate(o, preset, [batch])
    assert isinstance(candidate, TorchCandidate)
    return candidate


def settled(model: nn.Module, *batch: torch.Tensor) -> nn.Module:
    """A model whose batch norms have statistics and gains of their own."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(m.weight, 0.5, 2.0)
            nn.init.uniform_(m.bias, -1.0, 1.0)
    with torch.no_grad():
        for _ in range(30):
            model.train()(*batch)
    return model.eval()


def far(got: np.ndarray, model: nn.Module, *batch: torch.Tensor) -> float:
    with torch.no_grad():
        expected = model(*batch).float().numpy()
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


CASES: list[tuple[int, dict[str, Any]]] = [
    (1, {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}),
    (2, {"kernel_size": 2, "stride": 2}),
    (2, {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "groups": 4}),
    (3, {"kernel_size": 3, "stride": (1, 2, 2), "bias": False}),
]


@pytest.mark.parametrize("how", ["auto", "modules"])
@pytest.mark.parametrize(("dims", "form"), CASES)
def test_a_transposed_convolution_is_quantized_saved_and_loaded(
    dims: int, form: dict[str, Any], how: How, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    batch = (torch.randn(4, 8, *(5,) * dims),)
    model = settled(nn.Sequential(kind(8, 12, **form), norm(12), nn.Tanh()), *batch)
    o = opened_torch(model, batch, capture=how)
    (op,) = o.view.ops
    assert op.type == "conv_transpose"
    assert op.bias == "0.bias"
    plain = o.session.apply(preset_recipe("int8-static", build_space(o), o), {})
    assert far(plain.run(batch)[0], model, *batch) < 1e-4
    candidate = quantized(o, batch, "int8-static")
    assert candidate.ledger["0"].realization == "kernel"
    assert any(isinstance(m, Int8ConvTranspose) for m in candidate.native.modules())
    assert not any(isinstance(m, norm) for m in candidate.native.modules())
    assert 0 < far(candidate.run(batch)[0], model, *batch) < 0.05
    assert 0 < far(quantized(o, batch, "bfloat16").run(batch)[0], model, *batch) < 0.05
    candidate.save(tmp_path)
    loaded = TorchAdapter(TorchConfig()).load(
        tmp_path, nn.Sequential(kind(8, 12, **form), norm(12), nn.Tanh()).eval()
    )
    np.testing.assert_allclose(
        loaded.run(batch)[0], candidate.run(batch)[0], rtol=1e-6, atol=1e-6
    )


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 12, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x, output_size=(10, 10))


@pytest.mark.parametrize("how", ["auto", "modules"])
@pytest.mark.parametrize("preset", ["int8-static", "int8-dynamic", "bfloat16"])
def test_an_output_size_is_kept(preset: str, how: How) -> None:
    torch.manual_seed(0)
    model, batch = Sized(), (torch.randn(2, 8, 5, 5),)
    o = opened_torch(model, batch, capture=how)
    assert far(quantized(o, batch, preset).run(batch)[0], model, *batch) < 0.05


def test_codes_pass_from_a_transposed_convolution_to_the_next() -> None:
    torch.manual_seed(0)
    model, batch = (
        nn.Sequential(nn.ConvTranspose2d(8, 12, 2, 2), nn.Conv2d(12, 8, 3)),
        (torch.randn(2, 8, 5, 5),),
    )
    for how in ("auto", "modules"):
        o, seen = opened_torch(model, batch, capture=how), []
        candidate = quantized(o, batch, "int8-static")
        candidate.native.get_submodule("1").register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].dtype)
        )
        assert far(candidate.run(batch)[0], model, *batch) < 0.05
        assert seen == [torch.uint8]


class Mlp(nn.Module):
    """Linear layers with batch norms; ``size`` makes it untraceable, ``deep`` gives the second norm
    an axis that is not a channel."""

    def __init__(self, deep: bool = False) -> None:
        super().__init__()
        self.deep = deep
        self.first, self.norm, self.act = (
            nn.Linear(64, 64, bias=False),
            nn.BatchNorm1d(64),
            nn.GELU(),
        )
        self.second, self.other = nn.Linear(64, 32), nn.BatchNorm1d(5 if deep else 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.first(x)))
        x = x.unsqueeze(1).expand(-1, 5, -1) if self.deep else x
        return self.other(self.second(x))


@pytest.mark.parametrize("how", ["auto", "modules"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    "preset", ["int8-static", "int8-dynamic", "int8-weight-only", "bfloat16"]
)
def test_batch_norms_fold_into_linear_layers(
    preset: str, deep: bool, how: How, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    batch = (torch.randn(40, 64),)
    model = settled(Mlp(deep), *batch)
    o = opened_torch(model, batch, capture=how)
    layer = o.session.capture.layers  # type: ignore[attr-defined]
    assert layer["first"].norm == "norm"
    assert layer["first"].fused == ("gelu",)
    assert layer["second"].norm == ("" if deep else "other")
    candidate = quantized(o, batch, preset)
    assert 0 < far(candidate.run(batch)[0], model, *batch) < 0.06
    assert sum(
        isinstance(m, nn.BatchNorm1d) for m in candidate.native.modules()
    ) == int(deep)
    candidate.save(tmp_path)
    np.testing.assert_allclose(
        TorchAdapter(TorchConfig()).load(tmp_path, Mlp(deep)).run(batch)[0],
        candidate.run(batch)[0],
        atol=1e-6,
    )


class Branching(nn.Module):
    """Convolutions with batch norms that fx cannot trace; one norm is used twice and one result is
    read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a, self.relu = (
            nn.Conv2d(3, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.b, self.norm_b = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.c, self.d, self.shared = (
            nn.Conv2d(16, 16, 1),
            nn.Conv2d(16, 16, 1),
            nn.BatchNorm2d(16),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm_a(self.a(x)))
        if float(x.sum()) < -1e9:
            raise ValueError("a branch on data")
        y = self.b(x)
        y = self.norm_b(y) + y
        return self.shared(self.c(y)) + self.shared(self.d(y))


@pytest.mark.parametrize("preset", ["int8-static", "int8-dynamic"])
def test_only_what_a_batch_norm_alone_reads_is_folded_in_a_module_tree(
    preset: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    batch = (torch.randn(4, 3, 9, 9),)
    model = settled(Branching(), *batch)
    o = opened_torch(model, batch)
    assert any(
        "a branch on data" in note or "float(x.sum())" in note for note in o.view.notes
    )
    layers = o.session.capture.layers  # type: ignore[attr-defined]
    assert {n: (layer.norm, layer.fused) for n, layer in layers.items()} == {
        "a": ("norm_a", ("relu",)), "b": ("", ()), "c": ("", ()), "d": ("", ()),
    }  # fmt: skip
    candidate = quantized(o, batch, preset)
    assert 0 < far(candidate.run(batch)[0], model, *batch) < 0.1
    candidate.save(tmp_path)
    np.testing.assert_allclose(
        TorchAdapter(TorchConfig()).load(tmp_path, Branching()).run(batch)[0],
        candidate.run(batch)[0],
        atol=1e-5,
    )


def test_an_activation_module_that_is_used_twice_joins_no_layer() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.act = (
                nn.Linear(64, 64),
                nn.Linear(64, 64),
                nn.Linear(64, 64),
                nn.ReLU(),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.c(y) + self.act(y) + self.act(self.b(x))

    torch.manual_seed(0)
    model, batch = Reused(), (torch.randn(8, 64),)
    candidate = quantized(
        opened_torch(model, batch, capture="modules"), batch, "int8-static"
    )
    assert far(candidate.run(batch)[0], model, *batch) < 0.05
