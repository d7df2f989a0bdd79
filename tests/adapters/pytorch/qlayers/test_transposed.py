"""Transposed convolutions as integer convolutions of their phases, against torch's float ones on
the numbers that the codes stand for."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import octavo
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.qlayers.subpixel import steps
from octavo.adapters.pytorch.qlayers.transposed import Int8ConvTranspose
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

UPSAMPLE = (
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)


@st.composite
def geometries(draw: Any) -> tuple[tuple[int, ...], Any, tuple[int, ...]]:
    """Kernel, geometry and input size of a transposed convolution that torch accepts and that has
    an output."""
    axes = []
    for _ in range(draw(st.integers(1, 3))):
        kernel, stride, dilation = (
            draw(st.integers(1, 5)),
            draw(st.integers(1, 4)),
            draw(st.integers(1, 3)),
        )
        extra, size = (
            draw(st.integers(0, max(stride, dilation) - 1)),
            draw(st.integers(1, 5)),
        )
        # Of which padding may leave one place.
        room = (size - 1) * stride + dilation * (kernel - 1) + extra
        axes.append(
            (
                kernel,
                stride,
                draw(st.integers(0, min(4, room // 2))),
                extra,
                dilation,
                size,
            )
        )
    kernel, stride, padding, extra, dilation, size = zip(*axes, strict=True)
    return (
        kernel,
        (stride, padding, extra, dilation, draw(st.sampled_from([1, 1, 2, 3]))),
        size,
    )


def weight_of(shape: tuple[int, ...], per_channel: bool) -> QuantizedTensor:
    codes = torch.randint(-127, 128, shape, dtype=torch.int8)
    scale = torch.rand(shape[1]) * 0.01 + 1e-3 if per_channel else torch.tensor(0.004)
    spec = QuantSpec(dtype="int8", granularity="channel" if per_channel else "tensor")
    return QuantizedTensor(
        codes,
        QuantParams(
            scale,
            torch.zeros_like(scale, dtype=torch.int32),
            spec,
            1 if per_channel else None,
        ),
    )


def fake_quantized(
    layer: Int8ConvTranspose, source: Activation, x: torch.Tensor
) -> torch.Tensor:
    """Return torch's transposed convolution in float64 on what the codes of weight and input stand
    for."""
    stride, padding, extra, dilation, groups = layer.geometry
    numbers = (source.quantize(x).double() - source.zero_point) * source.scale
    weight = layer.codes.double() * layer.scale.double().view(1, -1, *[1] * len(stride))
    bias = None if layer.bias is None else layer.bias.double()
    return UPSAMPLE[len(stride) - 1](
        numbers, weight, bias, stride, padding, extra, groups, dilation
    )


@settings(max_examples=120, deadline=None)
@given(
    geometries(),
    st.sampled_from([(1, 1), (2, 3)]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_every_geometry_is_exact(
    given_: Any,
    widths: tuple[int, int],
    per_channel: bool,
    static: bool,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    kernel, geometry, size = given_
    groups = geometry[4]
    inputs, outputs = widths[0] * groups, widths[1]
    x = torch.randn(2, inputs, *size)
    weight, added = (
        weight_of((inputs, outputs, *kernel), per_channel),
        torch.randn(outputs * groups) if bias else None,
    )
    source = Activation.around(x, symmetric=False)
    layer = Int8ConvTranspose(
        weight, added, torch.float32, source if static else None, geometry=geometry
    )
    expected = fake_quantized(layer, source, x)
    y = layer(x)
    assert y.shape == expected.shape
    torch.testing.assert_close(
        y.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )


@settings(max_examples=60, deadline=None)
@given(geometries(), st.booleans())
def test_every_output_comes_from_one_phase_and_every_product_is_computed_once(
    given_: Any, together: bool
) -> None:
    kernel, geometry, _ = given_
    made, empty = steps(kernel, geometry, together)
    phases = [*(p for step in made for p in step.phases), *empty]
    assert sorted(p.residues for p in phases) == [
        tuple(r) for r in np.ndindex(*geometry[0])
    ]
    taps = [index for step in made for p in step.phases for index in product(*p.taps)]
    assert sorted(taps) == list(np.ndindex(*kernel))


@pytest.mark.parametrize("then", ["", "relu"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [(4, 2, 1), (3, 2, 1), (3, 2, 2), (2, 3, 1), (3, 1, 1)],
)
def test_codes_are_written_where_readers_take_them(
    kernel: int, stride: int, dilation: int, then: str
) -> None:
    torch.manual_seed(0)
    x, geometry = (
        torch.randn(2, 8, 5, 6),
        ((stride,) * 2, (1, 1), (0, 0), (dilation,) * 2, 2),
    )
    source, gives = Activation.around(x, symmetric=False), Activation(0.05, 100)
    layer = Int8ConvTranspose(
        weight_of((8, 6, kernel, kernel), True),
        torch.randn(12),
        torch.float32,
        source,
        geometry=geometry,
        gives=gives,
        then=then,
    )
    expected = fake_quantized(layer, source, x)
    expected = torch.relu(expected) if then else expected
    codes = layer(source.quantize(x))
    assert codes.dtype == torch.uint8
    assert (
        int(
            (codes.int() - (torch.round(expected / 0.05) + 100).clamp(0, 255).int())
            .abs()
            .max()
        )
        <= 1
    )
    assert (
        float(
            (codes.int() != (torch.round(expected / 0.05) + 100).clamp(0, 255).int())
            .float()
            .mean()
        )
        < 0.01
    )


SCHEMES = [
    {
        "mode": mode,
        "weight": {"dtype": "int8", "granularity": weight},
        "input": {"dtype": source},
    }
    for mode in ("static", "dynamic")
    for weight in ("channel", "tensor")
    for source in ("uint8", "int8")
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_scheme_runs_on_the_kernel_and_is_loaded_as_it_was_saved(
    scheme: Any, tmp_path: Any
) -> None:
    torch.manual_seed(0)

    def network() -> nn.Module:
        return nn.Sequential(
            nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=2),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 4, 2, 2),
        ).eval()

    model, x = network(), torch.randn(2, 8, 6, 5)
    made = octavo.quantize_model(
        model, {"rules": [{"types": ["conv_transpose"], **scheme}]}, calibration=[(x,)]
    )
    assert {op: line.realization for op, line in made.candidate.ledger.items()} == {
        "0": "kernel",
        "2": "kernel",
    }
    assert {
        (line.applied.mode, line.applied.weight.granularity)
        for line in made.ledger.values()
    } == {(scheme["mode"], scheme["weight"]["granularity"])}
    y = made.candidate.run((x,))[0]
    with torch.no_grad():
        expected = model(x).numpy()
    assert 0 < np.linalg.norm(y - expected) < 0.05 * np.linalg.norm(expected)
    made.save(tmp_path / "saved")
    with torch.no_grad():
        np.testing.assert_array_equal(
            octavo.load(tmp_path / "saved", model=network())(x), made.model(x)
        )
