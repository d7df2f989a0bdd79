"""Integer convolutions of every geometry against torch's float ones, over memory that holds junk.

On some processors oneDNN's kernel leaves outputs unwritten whose windows meet no input. So that
this is tried on every
processor, those outputs are spoilt after each call of the real kernel: none of them may be asked
for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import octavo
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.kernels.windows import misses
from octavo.adapters.pytorch.qlayers.int8 import Int8Conv
from octavo.adapters.pytorch.qlayers.transposed import Int8ConvTranspose
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
UPSAMPLE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
STEP = 2.0**-4
"""Scale of the inputs: a power of two, so that a range of 255 steps gives exactly this scale again.
"""
JUNK = 113
FORMS = ("plain", "grouped", "depthwise", "multiplied")
EACH = 170


def untouched(
    places: Any, taps: Any, stride: Any, padding: Any, dilation: Any
) -> torch.Tensor:
    """Return which outputs meet no input, counted by a convolution of ones with ones."""
    ones = CONVOLVE[len(places) - 1](
        torch.ones(1, 1, *places),
        torch.ones(1, 1, *taps),
        None,
        stride,
        padding,
        dilation,
    )
    return ones[0, 0] == 0


@pytest.fixture
def spoiling(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Spoil what the kernel of some processors leaves unwritten; the list counts such outputs."""
    kernel: Any = torch.ops.onednn.qconv_pointwise
    spoilt: list[int] = []

    def run(
        x: torch.Tensor, scale: float, zero_point: int, packed: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        y: torch.Tensor = kernel(x, scale, zero_point, packed, *rest)
        stride, padding, dilation = rest[3:6]
        dead = untouched(
            x.shape[2:], packed.shape[-(x.ndim - 2) :], stride, padding, dilation
        )
        spoilt.append(int(dead.sum()))
        y[..., dead] = JUNK
        return y

    monkeypatch.setattr(torch.ops.onednn, "qconv_pointwise", run)
    return spoilt


def leave_junk(count: int) -> None:
    """Fill memory of a result's size, and of others, with junk and let it go."""
    for size in {count, 4 * count, 4 * count + 64}:
        held = [torch.full((size,), JUNK, dtype=torch.uint8) for _ in range(2)]
        del held


def axis_of(rng: np.random.Generator) -> tuple[int, int, int, int, int]:
    """Return kernel, stride, padding, dilation and places of one axis, with at least one output;
    padding may exceed all else."""
    kernel, stride, dilation, places = (
        int(rng.integers(1, most + 1)) for most in (5, 4, 3, 7)
    )
    least = -(-max(0, dilation * (kernel - 1) + 1 - places) // 2)
    return kernel, stride, int(rng.integers(least, least + 4)), dilation, places


def widths_of(rng: np.random.Generator, form: str) -> tuple[int, int, int]:
    """Return groups, inputs of a group and outputs of a group."""
    inputs, outputs = (int(rng.choice([1, 2, 3, 4, 8, 16])) for _ in range(2))
    groups = 1 if form == "plain" else int(rng.choice([2, 3, 4, 8]))
    if form == "depthwise":
        return groups, 1, 1
    return groups, 1 if form == "multiplied" else inputs, outputs


def codes_of(
    rng: np.random.Generator, shape: tuple[int, ...], per_channel: bool, axis: int
) -> QuantizedTensor:
    # Seven bits: processors without VNNI multiply no wider codes on this kernel.
    codes = torch.from_numpy(rng.integers(-63, 64, shape).astype(np.int8))
    scale = (
        torch.from_numpy(rng.uniform(0.5, 1.5, shape[axis]).astype(np.float32))
        if per_channel
        else torch.tensor(0.75)
    )
    spec = QuantSpec(dtype="int8", granularity="channel" if per_channel else "tensor")
    return QuantizedTensor(
        codes,
        QuantParams(
            scale,
            torch.zeros_like(scale, dtype=torch.int32),
            spec,
            axis if per_channel else None,
        ),
    )


def numbers_of(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> tuple[torch.Tensor, int]:
    """Return numbers that lie on the steps of a grid and span all of it, and the code of zero."""
    zero_point = int(rng.integers(0, 256))
    codes = rng.integers(0, 256, shape)
    codes.reshape(-1)[:2] = 0, 255
    return torch.from_numpy(
        ((codes - zero_point) * STEP).astype(np.float32)
    ), zero_point


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_every_geometry_are_exact(
    dims: int, form: str, spoiling: list[int]
) -> None:
    rng = np.random.default_rng(dims)
    missed = 0
    for _ in range(EACH):
        kernel, stride, padding, dilation, places = zip(
            *(axis_of(rng) for _ in range(dims)), strict=True
        )
        groups, inputs, outputs = widths_of(rng, form)
        x, zero_point = numbers_of(rng, (2, groups * inputs, *places))
        static, per_channel, with_bias = (bool(rng.integers(2)) for _ in range(3))
        weight = codes_of(rng, (groups * outputs, inputs, *kernel), per_channel, 0)
        bias = (
            torch.from_numpy(rng.normal(size=groups * outputs).astype(np.float32))
            if with_bias
            else None
        )
        source = Activation(STEP, zero_point) if static else None
        geometry = (list(stride), list(padding), list(dilation), groups)
        layer = Int8Conv(weight, bias, torch.float32, source, geometry=geometry)
        real = None if bias is None else bias.double()
        expected = CONVOLVE[dims - 1](
            x.double(),
            weight.dequantize().double(),
            real,
            stride,
            padding,
            dilation,
            groups,
        )
        missed += bool(untouched(places, kernel, stride, padding, dilation).any())
        leave_junk(expected.numel())
        case = (
            f"{kernel=} {stride=} {padding=} {dilation=} {places=} {groups=} {inputs=} "
            f"{outputs=} {static=} {per_channel=}"
        )
        torch.testing.assert_close(
            layer(x).double(),
            expected,
            rtol=0,
            atol=1e-5 * float(expected.abs().max()) + 1e-9,
            msg=case,
        )
    assert len(spoiling) == EACH
    assert sum(spoiling) == 0
    assert missed > EACH // 10  # geometries that need care were among them


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolutions_of_every_geometry_are_exact(
    dims: int, form: str, spoiling: list[int]
) -> None:
    rng = np.random.default_rng(10 + dims)
    for _ in range(EACH // 2):
        axes = [axis_of(rng) for _ in range(dims)]
        kernel, stride, _, dilation, places = zip(*axes, strict=True)
        extra = tuple(
            int(rng.integers(0, max(s, d)))
            for s, d in zip(stride, dilation, strict=True)
        )
        reach = [
            (n - 1) * s + d * (k - 1) + e
            for k, s, d, n, e in zip(
                kernel, stride, dilation, places, extra, strict=True
            )
        ]
        padding = tuple(int(rng.integers(0, min(4, r // 2) + 1)) for r in reach)
        groups, inputs, outputs = widths_of(rng, form)
        x, zero_point = numbers_of(rng, (2, groups * inputs, *places))
        static, per_channel, with_bias = (bool(rng.integers(2)) for _ in range(3))
        weight = codes_of(rng, (groups * inputs, outputs, *kernel), per_channel, 1)
        bias = (
            torch.from_numpy(rng.normal(size=groups * outputs).astype(np.float32))
            if with_bias
            else None
        )
        source = Activation(STEP, zero_point) if static else None
        geometry = (stride, padding, extra, dilation, groups)
        layer = Int8ConvTranspose(
            weight, bias, torch.float32, source, geometry=geometry
        )
        real = None if bias is None else bias.double()
        expected = UPSAMPLE[dims - 1](
            x.double(),
            weight.dequantize().double(),
            real,
            stride,
            padding,
            extra,
            groups,
            dilation,
        )
        leave_junk(expected.numel())
        case = f"{kernel=} {geometry=} {places=} {inputs=} {outputs=} {static=} {per_channel=}"
        torch.testing.assert_close(
            layer(x).double(),
            expected,
            rtol=0,
            atol=1e-5 * float(expected.abs().max()) + 1e-9,
            msg=case,
        )
    assert sum(spoiling) == 0


@pytest.mark.parametrize("seed", range(4))
def test_windows_that_miss_the_input_are_told(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(500):
        kernel, stride, padding, dilation, places = axis_of(rng)
        expected = bool(
            untouched((places,), (kernel,), stride, padding, dilation).any()
        )
        assert misses(places, kernel, stride, padding, dilation) == expected, (
            kernel,
            stride,
            padding,
            dilation,
            places,
        )


REPORTED = {
    "dilated taps on one pixel": (
        nn.Conv2d,
        (8, 16, (2, 2)),
        {"dilation": (1, 2), "padding": (1, 1)},
        (2, 8, 1, 1),
    ),
    "one transposed channel": (
        nn.ConvTranspose2d,
        (1, 1, (2, 2)),
        {"padding": (0, 1), "dilation": (1, 2)},
        (2, 1, 1, 1),
    ),
    "rows that no tap reaches": (
        nn.ConvTranspose2d,
        (1, 1, (2, 4)),
        {"stride": (1, 3), "padding": (0, 1), "dilation": (1, 2)},
        (2, 1, 5, 5),
    ),
    "two channels into one": (
        nn.ConvTranspose2d,
        (2, 1, (2, 3)),
        {"stride": 3, "padding": (0, 2), "dilation": (3, 2)},
        (1, 2, 4, 6),
    ),
    "padding beyond a signal": (nn.Conv1d, (4, 8, 1), {"padding": 3}, (2, 4, 5)),
    "a volume of one voxel": (
        nn.Conv3d,
        (2, 4, 2),
        {"dilation": 2, "padding": 1},
        (2, 2, 1, 1, 1),
    ),
}


@pytest.mark.parametrize("preset", ["int8-static", "int8-dynamic"])
@pytest.mark.parametrize("name", REPORTED)
def test_reported_layers_follow_their_float_ones(
    name: str, preset: str, spoiling: list[int]
) -> None:
    torch.manual_seed(0)
    kind, widths, settings, shape = REPORTED[name]
    model, batches = (
        nn.Sequential(kind(*widths, **settings)).eval(),
        [torch.randn(shape) for _ in range(4)],
    )
    made = octavo.quantize_model(model, preset, calibration=batches)
    with torch.no_grad():
        expected = model(batches[0])
        leave_junk(expected.numel())
        y = made.model(batches[0])
    assert [line.realization for line in made.ledger.values()] == ["kernel"]
    assert float((y - expected).abs().max()) < 0.05 * float(expected.abs().max())
    assert sum(spoiling) == 0
