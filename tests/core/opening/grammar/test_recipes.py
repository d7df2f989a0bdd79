"""Named schemes on a model: what each op takes, and that strangers' methods round it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import octavo
from octavo.core.contract.adapter import Opened
from octavo.core.errors import ConfigError, DataError, SchemeError
from octavo.core.opening.opening import open_model
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.spaces import build_space
from octavo.core.values.scheme import OpScheme
from tests import tiny
from tests.helpers import opened_torch

from .test_named import HOST, stranger

torch = pytest.importorskip("torch")

DTYPES = {
    "int8": ("int8", "uint8"),
    "int4": ("int4", "uint4"),
    "int3": ("int3", "uint3"),
    "int2": ("int2", "uint2"),
    "nf4": ("nf4",),
    "fp8": ("fp8_e4m3fn",),
}


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    nn = torch.nn
    layers = (nn.Embedding(16, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    return nn.Sequential(*layers).eval()


def ids() -> torch.Tensor:
    return torch.arange(16).reshape(2, 8)


def opened() -> Opened:
    return opened_torch(model(), ids())


def as_before(name: str) -> Callable[[OpScheme], bool]:
    """What a preset took before schemes had a grammar."""
    if name in ("bfloat16", "float16"):
        return lambda s: s.mode == "cast" and s.weight.dtype == name
    width, mode = name.split("-", 1)

    def check(scheme: OpScheme) -> bool:
        spec = scheme.weight or scheme.input
        return scheme.mode == mode.replace("-", "_") and spec.dtype in DTYPES[width]

    return check


PRESETS = (
    "int8-static",
    "int8-dynamic",
    "int8-weight-only",
    "int4-weight-only",
    "int3-weight-only",
    "int2-weight-only",
    "nf4-weight-only",
    "fp8-weight-only",
    "bfloat16",
    "float16",
)
"""The names that there were then, but for the one that no kernel here carries out."""


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_what_they_took(name: str) -> None:
    target = opened()
    space = build_space(target)
    recipe = preset_recipe(name, space, target, HOST)
    for unit in space.tunable:
        fitting = [s for s in unit.choices if as_before(name)(s)]
        if unit.type == "embedding" and name.startswith("int8-"):
            fitting += [s for s in unit.choices if as_before("int8-weight-only")(s)]
        assert recipe[unit.name] == (fitting[0] if fitting else unit.choices[-1])


def test_what_is_only_simulated_says_so() -> None:
    target = opened()
    with pytest.raises(SchemeError, match=r"only simulated, which .* simulated = true"):
        preset_recipe("fp8-dynamic", build_space(target), target, HOST)
    space = build_space(target, simulated=True)
    assert preset_recipe("fp8-dynamic", space, target, HOST)


def test_what_no_op_can_take_names_what_they_can() -> None:
    target = opened()
    space = build_space(target)
    with pytest.raises(SchemeError, match=r"It can: .*int4-weight-only.*int8-static"):
        preset_recipe("w8a16-static", space, target, HOST)
    with pytest.raises(SchemeError, match=r"of int4-weight-only there is .*group:32"):
        preset_recipe("int4(group=48)", space, target, HOST)


def test_a_whole_scheme_becomes_a_recipe() -> None:
    target = opened()
    text = "int4-weight-only(group=64)+awq+gptq+bias-correction+distill(steps=2)"
    recipe = preset_recipe(text, build_space(target), target, HOST)
    assert [str(t) for t in recipe.transforms] == ["awq"]
    steps = [str(r) for r in recipe.recovery]
    assert steps == ["distillation(half=False,rate=0,scale_rate=0.001,steps=2)"]
    written = {str(s) for s in recipe.schemes.values()}
    assert written == {
        "weight_only w:uint4-asym/group:64/scale:uint8 "
        "awq -> gptq(bias_correction=True)"
    }


def test_transforms_follow_each_other_as_written() -> None:
    target = opened()
    text = "int8-static+hadamard+smoothquant"
    recipe = preset_recipe(text, build_space(target), target, HOST)
    assert [str(t) for t in recipe.transforms] == ["hadamard", "smoothquant"]


def test_what_has_nothing_to_do_is_among_the_notes() -> None:
    x = torch.randn(4, 48)
    norm = torch.nn.Sequential(torch.nn.LayerNorm(48), torch.nn.Linear(48, 16)).eval()
    made = octavo.quantize_model(norm, "int8-dynamic+outlier-suppression", [x])
    assert any("calibrator token, which has nothing to do" in n for n in made.notes)
    static = octavo.quantize_model(norm, "outlier-suppression", [x])
    assert {str(s.calibrator) for s in static.candidate.recipe.schemes.values()} == {
        "token"
    }
    assert [str(t) for t in static.candidate.recipe.transforms] == [
        "outlier_suppression"
    ]


def test_float_is_a_scheme() -> None:
    made = octavo.quantize_model(model(), "float", backend="torch")
    assert not made.candidate.recipe.schemes
    assert torch.equal(made.model(ids()), model()(ids()))


def test_what_needs_data_says_so_before_work() -> None:
    with pytest.raises(DataError, match="scheme 'gptq' needs calibration data"):
        octavo.quantize_model(model(), "gptq")


def test_a_strangers_method_rounds() -> None:
    # Rounded down by a whole step, every code is one lower than the nearest.
    host = stranger()
    target = open_model(tiny.chain(), tiny.host(), example=tiny.calibration()[0])
    scheme = "int8-dynamic+round-down(by=1.0)"
    recipe = preset_recipe(scheme, build_space(target), target, host)
    assert {str(s.algorithm) for s in recipe.schemes.values()} == {"Round_Down(by=1.0)"}
    linear = torch.nn.Sequential(torch.nn.Linear(32, 8)).eval()
    x = torch.randn(4, 32)
    plain, lower = (
        octavo.quantize_model(linear, text, [x], host=host).model(x)
        for text in ("int8-dynamic", scheme)
    )
    weight = linear[0].weight.detach()
    step = weight.abs().amax(dim=1) / 127
    np.testing.assert_allclose(
        (plain - lower).numpy(), (x.sum(1)[:, None] * step).numpy(), atol=0.05
    )


def test_a_name_wins_over_a_file_of_that_name_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hqq").mkdir()
    made = octavo.quantize_model(model(), "hqq")
    assert any("./hqq means what lies there" in note for note in made.notes)
    with pytest.raises(ConfigError, match=r"holds no octavo\.json"):
        octavo.quantize_model(model(), "./hqq")


def test_w4a8_dynamic_multiplies_4_bit_rows_by_8_bit_tokens() -> None:
    torch.manual_seed(1)
    linear = torch.nn.Linear(64, 16)
    x = torch.randn(5, 64)
    made = octavo.quantize_model(torch.nn.Sequential(linear).eval(), "w4a8-dynamic")
    assert {line.realization for line in made.ledger.values()} == {"kernel"}
    # By hand: symmetric codes, -7 to 7 by row of the weight, -127 to 127 by row of the input.
    weight, bias = (p.detach().numpy() for p in (linear.weight, linear.bias))
    steps = np.abs(weight).max(axis=1, keepdims=True) / 7
    scales = np.abs(x.numpy()).max(axis=1, keepdims=True) / 127
    codes = np.clip(np.round(weight / steps), -7, 7)
    taken = np.clip(np.round(x.numpy() / scales), -127, 127)
    expected = (taken @ codes.T) * scales * steps.T + bias
    np.testing.assert_allclose(made.model(x).detach(), expected, atol=2e-4)
