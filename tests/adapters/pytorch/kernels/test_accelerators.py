"""The products of other devices, run where they exist on the CPU too: the same numbers, and the
same layers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.kernels import accelerators, fbgemm
from octavo.adapters.pytorch.kernels.layouts import layouts
from octavo.adapters.pytorch.kernels.posts import post
from octavo.adapters.pytorch.offers import capability
from octavo.adapters.pytorch.qlayers.int8 import Int8Linear
from octavo.core.contract.adapter import Batch
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import SchemeError
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.graph import Op, Weight
from octavo.core.values.scheme import OpScheme, QuantSpec
from tests.helpers import as_opened, torch_session


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 64, 32), (16, 50, 21), (33, 7, 8), (64, 128, 64)],
)
@pytest.mark.parametrize("then", ["", "relu", "gelu"])
def test_int8_products_of_any_shape(
    rows: int, inputs: int, outputs: int, then: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, rows, inputs), dtype=torch.uint8, generator=generator)
    w = torch.randint(
        -127, 128, (outputs, inputs), dtype=torch.int8, generator=generator
    )
    scale, bias = (
        torch.rand(outputs, generator=generator) / 100,
        torch.randn(outputs, generator=generator),
    )
    packed, zero = accelerators.pack_linear(w), torch.zeros(outputs, dtype=torch.int32)
    assert packed[0].is_contiguous()
    assert all(n % 8 == 0 for n in packed[0].shape)
    y = accelerators.linear_u8(x, 0.02, 77, packed, scale, zero, bias, then=then)
    expected = post(
        then, ((x.double() - 77) * 0.02 @ (w.double() * scale[:, None]).T + bias)
    )
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)
    codes = accelerators.linear_u8(
        x, 0.02, 77, packed, scale, zero, bias, 0.05, 100, torch.uint8, then
    )
    near = (torch.round(expected / 0.05) + 100).clamp(0, 255)
    assert codes.dtype == torch.uint8
    assert float((codes.double() - near).abs().max()) <= 1


def candidate(
    model: nn.Module,
    batch: Batch,
    mode: str,
    weight: dict[str, Any],
    source: dict[str, Any],
    simulated: bool = False,
) -> TorchCandidate:
    session = torch_session(model, batch)
    opened = as_opened(session)
    space = build_space(
        opened,
        [Rule(types="linear", mode=mode, weight=weight, input=source)],
        simulated=simulated,
    )
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    realizer.calibrate([batch])
    made = realizer.candidate(space.recipe(space.first()))
    assert isinstance(made, TorchCandidate)
    return made


def network() -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(40, 50), nn.GELU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 21)
    ).eval(), (torch.randn(7, 3, 40),)


INT8 = {"dtype": "int8", "granularity": "channel"}


@pytest.mark.parametrize(
    ("mode", "source"),
    [
        ("static", {"dtype": "uint8"}),
        ("static", {"dtype": "int8"}),
        ("dynamic", {"dtype": "uint8"}),
        ("dynamic", {"dtype": "int8", "granularity": "token"}),
    ],
)
def test_a_layer_is_the_same_on_both_kinds_of_kernels(
    mode: str, source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = network()
    expected = candidate(model, batch, mode, INT8, source).run(batch)[0]
    monkeypatch.setitem(accelerators._TABLE, "cpu", accelerators)
    monkeypatch.setattr(fbgemm, "missing_rows", lambda: "not on this device")
    np.testing.assert_allclose(
        candidate(model, batch, mode, INT8, source).run(batch)[0],
        expected,
        atol=0.02 * np.abs(expected).max(),
    )


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_fp8_products(granularity: str) -> None:
    model, batch = network()
    weight = {
        "dtype": "fp8_e4m3fn",
        "granularity": "channel" if granularity == "token" else "tensor",
    }
    source = {"dtype": "fp8_e4m3fn", "granularity": granularity}
    one = candidate(
        nn.Sequential(model[0], model[1]),
        batch,
        "dynamic",
        weight,
        source,
        simulated=True,
    )
    assert {line.realization for line in one.ledger.values()} == {"simulated"}
    # fp8_e4m3fn by torch's own conversion, products in float64; what the product gives is bfloat16.
    x = batch[0].flatten(0, 1).double()
    largest = (
        x.abs().amax(1, keepdim=True) if granularity == "token" else x.abs().amax()
    )
    rounded = (
        (x / largest * 448).float().to(torch.float8_e4m3fn).double() * largest / 448
    )
    stored = one.parameters["0"].weight
    assert stored is not None
    expected = nn.functional.gelu(
        rounded @ stored.dequantize().double().T + model[0].bias.detach().double()
    )
    np.testing.assert_allclose(
        one.run(batch)[0].reshape(21, -1),
        expected,
        atol=0.005 * float(expected.abs().max()),
    )
    made = candidate(model, batch, "dynamic", weight, source, simulated=True)
    with torch.no_grad():
        whole = model(*batch)
    np.testing.assert_allclose(
        made.run(batch)[0], whole, atol=0.1 * float(whole.abs().max())
    )
    for twin in (copy.deepcopy(made.native), pickle.loads(pickle.dumps(made.native))):
        np.testing.assert_array_equal(twin(*batch).detach(), made.run(batch)[0])


def test_a_layer_that_moves_lays_its_weight_out_again() -> None:
    model, batch = network()
    for made in (
        candidate(model, batch, "static", INT8, {"dtype": "uint8"}),
        candidate(model, batch, "dynamic", INT8, {"dtype": "uint8"}),
    ):
        expected = made.run(batch)[0]
        made.native._apply(lambda t: t.clone())
        assert all(
            not layouts(m.codes)
            for m in made.native.modules()
            if isinstance(m, Int8Linear)
        )
        np.testing.assert_array_equal(made.run(batch)[0], expected)


def test_another_device_says_what_it_lacks() -> None:
    """A device whose products cannot run offers none, with torch's own reason: here one that holds
    no numbers."""
    offered = capability("meta")
    linear = Op(
        "fc", "linear", ("x",), ("y",), Weight("fc.weight", (64, 64), "float32")
    )
    assert {s.mode for s in offered.for_op(linear)} == {"weight_only", "cast", "float"}
    for source, kernel in (
        (QuantSpec(dtype="uint8", symmetric=False), "_int_mm"),
        (QuantSpec(dtype="fp8_e4m3fn"), "_scaled_mm"),
    ):
        weight = (
            QuantSpec(dtype="fp8_e4m3fn")
            if kernel == "_scaled_mm"
            else QuantSpec(dtype="int8", granularity="channel")
        )
        with pytest.raises(SchemeError, match=f"torch.{kernel}: "):
            offered.realization(
                linear, OpScheme(mode="dynamic", weight=weight, input=source)
            )
    conv = Op("c", "conv", ("x",), ("y",), Weight("c.weight", (8, 8, 3, 3), "float32"))
    assert {s.mode for s in offered.for_op(conv)} == {"weight_only", "cast", "float"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(
    ("mode", "source"),
    [
        ("static", {"dtype": "uint8"}),
        ("dynamic", {"dtype": "int8", "granularity": "token"}),
    ],
)
def test_layers_on_cuda(mode: str, source: dict[str, Any]) -> None:
    model, batch = network()
    expected = candidate(model, batch, mode, INT8, source).run(batch)[0]
    there = candidate(model.cuda(), (batch[0].cuda(),), mode, INT8, source)
    np.testing.assert_allclose(
        there.run(batch)[0], expected, atol=0.02 * np.abs(expected).max()
    )
