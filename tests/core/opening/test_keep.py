"""What a rule keeps in float stays so until a later rule says that it is quantized."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.core.errors import ConfigError
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import open_model
from octavo.core.opening.spaces import build_space
from octavo.core.values.space import TuningSpace
from tests import tiny

KEPT = {"ops": ["layer.0"], "keep": "float"}


def space_under(*rules: dict[str, Any]) -> TuningSpace:
    settings = TuningConfig.read(rules=rules)
    opened = open_model(tiny.chain(), tiny.host(), example=tiny.calibration()[0])
    return build_space(opened, settings.rules)


def quantizable(space: TuningSpace) -> bool:
    return any("layer.0" in unit.ops for unit in space.tunable)


@pytest.mark.parametrize("later", [
    {"types": ["linear"], "algorithm": ["rtn"]},
    {"types": ["linear"], "calibrator": ["minmax"]},
    {"ops": ["layer.0"], "algorithm": ["rtn"], "calibrator": ["mse"]},
    {"types": ["linear"], "input": {"dtype": "uint8"}},
    {"types": ["linear"]},
])  # fmt: skip
def test_a_rule_that_says_how_does_not_lift_it(later: dict[str, Any]) -> None:
    assert not quantizable(space_under(KEPT, later))


@pytest.mark.parametrize("later", [
    {"ops": ["layer.0"], "mode": "static"},
    {"types": ["linear"], "weight": {"dtype": "int8"}},
    {"ops": ["layer.0"], "mode": "static", "algorithm": ["rtn"]},
])  # fmt: skip
def test_a_rule_that_says_mode_or_weight_lifts_it(later: dict[str, Any]) -> None:
    assert quantizable(space_under(KEPT, later))
    assert not quantizable(space_under(KEPT, later, KEPT))


def test_a_rule_without_effect_is_told() -> None:
    space = space_under(KEPT, {"ops": ["layer.0"], "algorithm": ["rtn"]})
    assert any("rule 2 changes nothing" in note for note in space.notes)
    assert not any(
        "changes nothing" in note
        for note in space_under(KEPT, {"types": ["linear"], "algorithm": ["rtn"]}).notes
    )


@pytest.mark.parametrize(
    "beside",
    [
        {"mode": "static"},
        {"weight": "int8"},
        {"algorithm": ["gptq"]},
        {"calibrator": "mse"},
        {"input": "uint8"},
    ],
)
def test_keep_beside_anything_else_is_refused(beside: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="would be dropped"):
        TuningConfig.read(rules=[{**KEPT, **beside}])
