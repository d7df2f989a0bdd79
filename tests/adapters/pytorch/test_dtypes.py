"""Modules in float64, bfloat16 and float16, whole, mixed and under autocast: what is offered runs,
and results keep their dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.core.errors import SchemeError

B16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = [F64, B16, F16]
PRESETS = [
    "int8-static",
    "int8-dynamic",
    "int8-weight-only",
    "int4-weight-only",
    "bfloat16",
    "float16",
]


class To(nn.Module):
    """A change of dtype between layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype)


class Residual(nn.Module):
    """Two convolutions, whose result is added to the input and clamped, as in ResNet's blocks."""

    def __init__(self, conv: Any, norm: Any, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.second = (
            conv(4, 4, 3, padding=1, bias=False),
            conv(4, 4, 3, padding=1, bias=False),
        )
        self.norm, self.other = norm(4), norm(4)
        self.inner, self.relu = inner, nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.other(self.second(self.inner(self.norm(self.first(x)))))
        y += x
        return self.relu(y)


class Tagger(nn.Module):
    """A recurrent layer and a linear one over each of its steps."""

    def __init__(self, cell: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0])


class Attending(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = (
            nn.MultiheadAttention(32, 4, batch_first=True),
            nn.Linear(32, 32),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def convolutions(conv: Any) -> nn.Module:
    return nn.Sequential(conv(4, 8, 3, padding=1), nn.ReLU(), conv(8, 4, 1))


def upsampling(conv: Any) -> nn.Module:
    return nn.Sequential(conv(4, 8, 4, 2, 1), nn.ReLU(), conv(8, 4, 2, 2))


Case = tuple[Callable[[], nn.Module], tuple[int, ...]]
CASES: dict[str, Case] = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8)),
        (4, 32),
    ),
    "linear over many rows": (
        lambda: nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)),
        (3, 100, 32),
    ),
    "conv1d": (lambda: convolutions(nn.Conv1d), (2, 4, 9)),
    "conv2d": (lambda: convolutions(nn.Conv2d), (2, 4, 7, 7)),
    "conv3d": (lambda: convolutions(nn.Conv3d), (2, 4, 5, 5, 5)),
    "residual 1d": (lambda: Residual(nn.Conv1d, nn.BatchNorm1d, nn.ReLU()), (2, 4, 9)),
    "residual 2d": (
        lambda: Residual(nn.Conv2d, nn.BatchNorm2d, nn.ReLU()),
        (2, 4, 7, 7),
    ),
    "residual 3d": (
        lambda: Residual(nn.Conv3d, nn.BatchNorm3d, nn.ReLU()),
        (2, 4, 5, 5, 5),
    ),
    "transposed 1d": (lambda: upsampling(nn.ConvTranspose1d), (2, 4, 5)),
    "transposed 2d": (lambda: upsampling(nn.ConvTranspose2d), (2, 4, 5, 5)),
    "transposed 3d": (lambda: upsampling(nn.ConvTranspose3d), (2, 4, 3, 3, 3)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 32)), ()),
    "lstm": (lambda: Tagger(nn.LSTM(32, 32, batch_first=True)), (2, 5, 32)),
    "gru": (lambda: Tagger(nn.GRU(32, 32, batch_first=True)), (2, 5, 32)),
    "projected lstm": (
        lambda: Tagger(nn.LSTM(32, 32, proj_size=16, batch_first=True), 16),
        (2, 5, 32),
    ),
    "attention": (Attending, (2, 6, 32)),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(32, 4, 32, batch_first=True),
        (2, 6, 32),
    ),
}


def follow(model: nn.Module, preset: str, batches: list[torch.Tensor]) -> None:
    """Assert that a quantized model follows its float one, in the float one's dtype."""
    with torch.no_grad():
        expected = model(batches[0])
        y = octavo.quantize_model(model, preset, calibration=batches).model(batches[0])
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    cosine = nn.functional.cosine_similarity(
        y.double().flatten(), expected.double().flatten(), 0
    )
    assert float(cosine) > (0.93 if preset.startswith("int4") else 0.98)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CASES)
def test_whole_modules_run_in_their_dtype(
    name: str, preset: str, dtype: torch.dtype
) -> None:
    make, shape = CASES[name]
    torch.manual_seed(0)
    model = make().eval().to(dtype)
    batches = [
        torch.randn(shape).to(dtype) if shape else torch.randint(0, 50, (3, 7))
        for _ in range(3)
    ]
    refusal = ""
    try:
        follow(model, preset, batches)
    except SchemeError as error:
        refusal = str(error)
    # A preset that has nothing for these layers says so; integers have.
    assert not refusal or "for no op of this model" in refusal
    assert not (refusal and preset in ("int8-static", "int8-dynamic"))


def between(dtype: torch.dtype) -> nn.Module:
    layers = [
        nn.Linear(32, 32),
        nn.ReLU(),
        To(dtype),
        nn.Linear(32, 32).to(dtype),
        nn.LayerNorm(32).to(dtype),
        To(F32),
        nn.Linear(32, 8),
    ]
    return nn.Sequential(*layers)


def convolved_between(dtype: torch.dtype) -> nn.Module:
    layers = [
        nn.Conv2d(32, 8, 1),
        nn.ReLU(),
        To(dtype),
        nn.Conv2d(8, 8, 1).to(dtype),
        nn.ReLU(),
        To(F32),
        nn.Conv2d(8, 4, 1),
    ]
    return nn.Sequential(nn.Unflatten(1, (32, 1, 1)), *layers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("make", [between, convolved_between])
def test_mixed_modules_run_layer_by_layer(
    make: Callable[[torch.dtype], nn.Module], preset: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    follow(make(dtype).eval(), preset, [torch.randn(6, 32) for _ in range(3)])


class Autocast(nn.Module):
    """Layers whose forward chooses 16 bits by itself."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layers(x)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("rows", [2, 300])
def test_layers_give_what_autocast_makes_of_float_ones(rows: int, preset: str) -> None:
    torch.manual_seed(0)
    model = Autocast(
        nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)
    ).eval()
    follow(model, preset, [torch.randn(rows, 32) for _ in range(3)])


ACTIVATIONS = [
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.ELU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.PReLU,
]


@pytest.mark.parametrize("preset", ["int8-static", "int8-dynamic"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_may_be_followed_by_any_activation(
    dims: int, activation: Callable[[], nn.Module], preset: str
) -> None:
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    layers = [
        conv(2, 4, 3),
        activation(),
        conv(4, 4, 1),
        norm(4),
        activation(),
        conv(4, 3, 1),
        activation(),
    ]
    batches = [torch.randn(2, 2, *[6] * dims) for _ in range(3)]
    follow(nn.Sequential(*layers).eval(), preset, batches)


@pytest.mark.parametrize("preset", ["int8-static", "int8-dynamic"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_blocks_over_three_axes_add_what_they_are_given(
    activation: Callable[[], nn.Module], preset: str
) -> None:
    torch.manual_seed(0)
    block = Residual(nn.Conv3d, nn.BatchNorm3d, activation())
    model = nn.Sequential(
        nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), block, nn.Conv3d(4, 2, 1)
    ).eval()
    follow(model, preset, [torch.randn(2, 3, 6, 6, 6) for _ in range(3)])
