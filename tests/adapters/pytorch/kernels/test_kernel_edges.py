"""Every kernel that the adapter calls, at the edges of its shapes: one table of layers, the inputs
they meet, and how they are quantized.

What a float layer takes, its quantized one takes: one row, one channel, rows that fill no block, no
samples at all, a sample without an axis for the batch, and memory in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.adapters.pytorch.kernels import accelerators, onednn
from octavo.adapters.pytorch.kernels.rounding import quantize_rows, quantize_u8
from octavo.core.errors import ConfigError, SchemeError

Tensor = torch.Tensor
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
UPSAMPLING = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

INTEGER: list[Any] = ["int8-static", "int8-dynamic"]
STORED: list[Any] = [
    "int8-weight-only",
    "int4-weight-only",
    "int3-weight-only",
    "nf4-weight-only",
    "fp8-weight-only",
    "mxfp6",
]
CAST: list[Any] = ["bfloat16", "float16"]
RULES: dict[str, Any] = {
    "mxfp6": {"rules": [{"mode": "weight_only", "weight": {"dtype": "mxfp6"}}]},
    "rows": {
        "rules": [
            {
                "mode": "dynamic",
                "input": {"granularity": "token"},
                "weight": {"dtype": "int8"},
            }
        ]
    },
    "fp8 rows": {
        "rules": [
            {
                "mode": "dynamic",
                "input": {"granularity": "token", "dtype": "fp8_e4m3fn"},
            }
        ],
        "simulated": True,
    },
    "fp8": {
        "rules": [
            {
                "mode": "dynamic",
                "input": {"granularity": "tensor", "dtype": "fp8_e4m3fn"},
            }
        ],
        "simulated": True,
    },
}
SHARE = {"int4": 0.25, "nf4-": 0.25, "int3": 0.5, "mxfp": 0.15}
"""How far from the float layer's largest output a scheme may be; 0.08 where it is not named. Junk
is farther."""


def values(*shape: int) -> Tensor:
    """Return numbers from -1 to 1."""
    return torch.rand(shape) * 2 - 1


def whole(x: Tensor) -> Tensor:
    """Return numbers of which some are -1 and 1, so that a range that is found in them holds all
    others."""
    x.view(-1)[:2] = torch.tensor([-1.0, 1.0])
    return x


def spread(x: Tensor) -> Tensor:
    """Return the same numbers with a gap behind each of them in memory."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def rows_of(width: int) -> Iterator[Tensor]:
    yield from (
        values(1, width),
        values(width),
        values(1, 1, 1, width),
        values(300, width),
    )
    yield from (values(0, width), values(2, 0, width), torch.zeros(3, width))
    yield from (
        spread(values(3, width)),
        values(width, 3).t(),
        values(1, width).expand(5, width),
    )


def samples_of(channels: int, dims: int) -> Iterator[Tensor]:
    places = [5] * dims
    yield from (
        values(1, channels, *places),
        values(channels, *places),
        values(2, channels, *[1] * dims),
    )
    yield from (values(0, channels, *places), torch.zeros(2, channels, *places))
    yield from (
        spread(values(2, channels, *places)),
        values(1, channels, *places).expand(3, *[-1] * (dims + 1)),
    )
    yield values(2, *places, channels).movedim(-1, 1)


def sequences_of(width: int) -> Iterator[Tensor]:
    yield from (
        values(1, 1, width),
        values(1, 6, width),
        values(6, width),
        values(0, 6, width),
    )
    yield from (values(2, width, 4).transpose(1, 2), spread(values(2, 3, width)))


def ids_of(count: int) -> Iterator[Tensor]:
    ids = torch.arange(12).view(3, 4) % count
    yield from (ids[0, 0], ids[:1, 0], ids.t(), ids.int(), ids[:0], ids[:, :0])


class Recurrent(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Attending(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, **form: Any) -> None:
        super().__init__()
        self.attention, self.weights = (
            nn.MultiheadAttention(32, 4, batch_first=True, **form),
            bool(form),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.weights)[0]


@dataclass(frozen=True)
class Edge:
    """One row of the table."""

    make: Callable[[], nn.Module]
    calibration: Callable[[], Tensor]
    inputs: Callable[[], Iterator[Tensor]]
    schemes: list[Any]


def linear(width: int, outputs: int) -> Edge:
    schemes = [*INTEGER, *STORED, *CAST, "rows", "fp8 rows", "fp8"]
    return Edge(
        lambda: nn.Linear(width, outputs),
        lambda: whole(values(7, width)),
        lambda: rows_of(width),
        schemes,
    )


def conv(kinds: Any, dims: int, widths: tuple[int, int, int]) -> Edge:
    inputs, outputs, groups = widths
    transposed = kinds is UPSAMPLING

    def make() -> nn.Module:
        return kinds[dims - 1](
            inputs, outputs, 3, stride=2 if transposed else 1, padding=1, groups=groups
        )

    schemes = (
        [*INTEGER, *CAST]
        if transposed
        else [*INTEGER, *CAST, "int8-weight-only", "fp8-weight-only"]
    )
    return Edge(
        make,
        lambda: whole(values(2, inputs, *[5] * dims)),
        lambda: samples_of(inputs, dims),
        schemes,
    )


def recurrent(cell: Any, width: int, hidden: int, **form: Any) -> Edge:
    def make() -> nn.Module:
        return Recurrent(cell(width, hidden, batch_first=True, **form))

    return Edge(
        make,
        lambda: whole(values(3, 6, width)),
        lambda: sequences_of(width),
        ["int8-dynamic", *STORED],
    )


def embedding(count: int, width: int) -> Edge:
    calibration = lambda: torch.arange(12).view(3, 4) % count  # noqa: E731
    return Edge(
        lambda: nn.Embedding(count, width),
        calibration,
        lambda: ids_of(count),
        [*STORED, *CAST],
    )


def attention(make: Callable[[], nn.Module]) -> Edge:
    # Single steps: a mean over several has a smaller range.
    return Edge(
        make,
        lambda: whole(values(40, 1, 32)),
        lambda: sequences_of(32),
        [*INTEGER, "int8-weight-only", *CAST],
    )


WIDTHS = [(1, 1, 1), (3, 1, 1), (1, 5, 1), (4, 4, 4), (32, 64, 1)]
EDGES: dict[str, Edge] = {
    **{
        f"linear {k} to {n}": linear(k, n)
        for k, n in (
            (1, 1),
            (1, 32),
            (32, 1),
            (33, 32),
            (96, 33),
            (100, 64),
            (128, 64),
            (20000, 3),
        )
    },
    **{f"conv{d}d {w}": conv(CONVS, d, w) for d in (1, 2, 3) for w in WIDTHS},
    **{
        f"transposed {d}d {w}": conv(UPSAMPLING, d, w)
        for d in (1, 2, 3)
        for w in WIDTHS
    },
    **{
        f"{c.__name__} {k} to {n}": recurrent(c, k, n)
        for c in (nn.LSTM, nn.GRU)
        for k, n in ((1, 1), (5, 3), (32, 32))
    },
    "two directions": recurrent(nn.GRU, 5, 3, bidirectional=True, num_layers=2),
    "projected": recurrent(nn.LSTM, 5, 8, proj_size=3, bidirectional=True),
    "attention": attention(Attending),
    "attention that adds": attention(
        lambda: Attending(add_bias_kv=True, add_zero_attn=True)
    ),
    "encoder": attention(
        lambda: nn.TransformerEncoderLayer(32, 4, 32, batch_first=True)
    ),
    **{
        f"embedding {n} by {k}": embedding(n, k)
        for n, k in ((1, 1), (1, 32), (50, 3), (7, 64))
    },
}
TABLE = [
    pytest.param(edge, scheme, id=f"{name}-{scheme}")
    for name, edge in EDGES.items()
    for scheme in edge.schemes
]


@pytest.mark.parametrize(("edge", "scheme"), TABLE)
def test_a_quantized_layer_takes_what_its_float_layer_takes(
    edge: Edge, scheme: str
) -> None:
    torch.manual_seed(0)
    model = edge.make().eval()
    try:
        made = octavo.quantize_model(
            model, RULES.get(scheme, scheme), calibration=[edge.calibration()]
        ).model
    except (SchemeError, ConfigError):
        return  # rows that are not whole groups, say: told before anything runs
    share = SHARE.get(scheme[:4], 0.08)
    for x in edge.inputs():
        with torch.no_grad():
            expected, y = model(x), made(x)
        case = f"{tuple(x.shape)} with strides {x.stride()}"
        assert (y.shape, y.dtype) == (expected.shape, expected.dtype), case
        if y.numel():
            assert float((y - expected).abs().max()) <= share * (
                float(expected.abs().max()) + 0.3
            ), case


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_single_sample_meets_a_convolution_that_is_decoded_in_blocks(
    dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.adapters.pytorch.qlayers.packed_weights._BLOCK", 64)
    torch.manual_seed(0)
    model = CONVS[dims - 1](8, 12, 2).eval()
    made = octavo.quantize_model(
        model, "int8-weight-only", calibration=[values(2, 8, *[4] * dims)]
    ).model
    x = values(8, *[4] * dims)
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x), rtol=0, atol=0.02)


@pytest.mark.parametrize("make", [lambda: nn.Linear(0, 4), lambda: nn.Linear(4, 0)])
def test_a_weight_without_elements_stays_float(make: Callable[[], nn.Module]) -> None:
    # The kernels end the process on one.
    empty = make()
    model = (
        nn.Sequential(empty, nn.Linear(empty.out_features, 4))
        if empty.out_features
        else nn.Sequential(nn.Linear(4, 4), empty)
    )
    x = torch.ones(3, model[0].in_features)
    for preset in ("int8-dynamic", "int8-weight-only"):
        made = octavo.quantize_model(model.eval(), preset, calibration=[x])
        kept = [line.reason for line in made.ledger.values() if line.applied.is_float]
        assert "its weight has no elements" in kept
        assert made.model(x).shape == model(x).shape


@pytest.mark.parametrize("part", ["bias", "scale", "weight", "input"])
@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_integer_kernels_read_tensors_that_lie_apart_in_memory(
    dims: int, part: str
) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (3, 8, *[4] * dims), dtype=torch.uint8)
    # Seven bits: processors without VNNI multiply no wider codes.
    codes = torch.randint(-63, 64, (5, 8, *[2] * dims), dtype=torch.int8)
    scale, bias = torch.rand(5) + 0.5, torch.randn(5) * 1e4
    numbers, weight = (
        x.double() - 9,
        codes.double() * scale.double().view(-1, *[1] * (dims + 1)),
    )
    function: Any = (
        nn.functional.linear,
        nn.functional.conv1d,
        nn.functional.conv2d,
        nn.functional.conv3d,
    )[dims]
    expected = function(numbers, weight, bias.double())
    x, codes = (
        spread(x) if part == "input" else x,
        spread(codes) if part == "weight" else codes,
    )
    scale, bias = (
        spread(scale) if part == "scale" else scale,
        spread(bias) if part == "bias" else bias,
    )
    none = torch.zeros(5, dtype=torch.int32)
    if dims:
        geometry = ([1] * dims, [0] * dims, [1] * dims, 1)
        y = onednn.conv_u8(
            x,
            1.0,
            9,
            onednn.pack_conv(codes, scale, 1.0, 9, geometry),
            scale,
            none,
            bias,
            geometry,
        )
    else:
        y = onednn.linear_u8(x, 1.0, 9, onednn.pack_linear(codes), scale, none, bias)
    torch.testing.assert_close(
        y.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (1, 8), (3, 1, 8)])
def test_products_of_other_devices_take_any_number_of_rows(
    shape: tuple[int, ...],
) -> None:
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    codes = torch.randint(-63, 64, (5, 8), dtype=torch.int8)
    y = accelerators.linear_u8(
        x,
        1.0,
        128,
        accelerators.pack_linear(codes),
        torch.ones(5),
        torch.zeros(5, dtype=torch.int32),
        None,
    )
    torch.testing.assert_close(y.double(), (x.double() - 128) @ codes.double().T)


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0), (1, 1)])
def test_any_number_of_values_is_quantized(shape: tuple[int, ...]) -> None:
    x = values(*shape)
    assert quantize_u8(x, 0.01, 128, 0, 255).shape == shape
    if shape[-1]:
        codes, scale = quantize_rows(x)
        assert codes.shape == shape
        assert scale.shape == (*shape[:-1], 1)


BROKEN = [float("nan"), float("inf"), -float("inf")]
DYNAMIC = [
    "linear 33 to 32",
    "conv2d (32, 64, 1)",
    "conv3d (3, 1, 1)",
    "transposed 2d (32, 64, 1)",
    "LSTM 32 to 32",
    "projected",
]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("name", DYNAMIC)
def test_what_is_not_finite_is_no_error_and_does_not_get_lost(
    name: str, value: float
) -> None:
    torch.manual_seed(0)
    edge = EDGES[name]
    rules = [{"mode": "dynamic", "input": {"dtype": "uint8", "granularity": "tensor"}}]
    model, x = edge.make().eval(), edge.calibration()
    made = octavo.quantize_model(model, {"rules": rules}, calibration=[x]).model
    x.view(-1)[0] = value
    with torch.no_grad():
        finite, y = model(x).isfinite(), made(x)
        again = made(edge.calibration())
    assert not bool(y.isfinite()[~finite].any())
    assert bool(again.isfinite().all())


@pytest.mark.parametrize("rows", [2, 200])
def test_sums_of_very_long_rows_do_not_overflow(rows: int) -> None:
    width = 140_000  # 255 * 63 * 140000 is more than 2**31
    model, x = nn.Linear(width, 2, bias=False).eval(), torch.ones(rows, width)
    with torch.no_grad():
        model.weight.fill_(0.5 / width)
    rules = [{"mode": "dynamic", "input": {"dtype": "uint8", "granularity": "tensor"}}]
    made = octavo.quantize_model(model, {"rules": rules}, calibration=[x[:2]])
    torch.testing.assert_close(
        made.model(x), torch.full((rows, 2), 0.5), rtol=0.01, atol=0
    )
    assert "32 bits" in made.ledger["linear"].reason
