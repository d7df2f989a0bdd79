"""A rule may name a scheme: short for mode, weight, input, algorithm and calibrator."""

from __future__ import annotations

from typing import Any

import pytest

import octavo
from octavo.core.contract.adapter import Opened
from octavo.core.errors import ConfigError
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.spaces import build_space
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace
from tests.helpers import opened_torch

from .grammar.test_named import HOST, stranger

torch = pytest.importorskip("torch")

TABLE, FIRST, LAST = "0", "1", "3"


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    nn = torch.nn
    layers = (nn.Embedding(16, 48), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32))
    return nn.Sequential(*layers).eval()


def ids() -> torch.Tensor:
    return torch.arange(16).reshape(2, 8)


@pytest.fixture(scope="module")
def opened() -> Opened:
    return opened_torch(model(), ids())


def space_under(opened: Opened, *rules: dict[str, Any]) -> TuningSpace:
    settings = TuningConfig.read(rules=rules)
    return build_space(opened, settings.rules, host=HOST)


def choices(opened: Opened, op: str, *rules: dict[str, Any]) -> tuple[OpScheme, ...]:
    return space_under(opened, *rules).by_name[op].choices


@pytest.mark.parametrize(
    ("scheme", "spelled"),
    [
        ("int8-static", {"mode": "static", "weight": "int8"}),
        ("w4a8-static", {"mode": "static", "weight": "int4"}),
        ("static+mse", {"mode": "static", "weight": "int8", "calibrator": "mse"}),
        ("int8-static+gptq", {"mode": "static", "weight": "int8", "algorithm": "gptq"}),
        (
            "int4-weight-only+algorithm:awq+gptq",
            {
                "mode": "weight_only",
                "weight": {"dtype": ["int4", "uint4"]},
                "algorithm": [["awq", "gptq"]],
            },
        ),
        (
            "int4(group=64)+bias-correction",
            {
                "mode": "weight_only",
                "weight": {"dtype": ["int4", "uint4"], "granularity": "group:64"},
                "algorithm": [{"kind": "rtn", "bias_correction": True}],
            },
        ),
        (
            "qlora",
            {"mode": "weight_only", "weight": {"dtype": "nf4", "scale_dtype": "uint8"}},
        ),
        ("fp8", {"mode": "weight_only", "weight": "fp8_e4m3fn"}),
        ("bf16", {"mode": "cast", "weight": "bfloat16"}),
        ("float", {"mode": "float"}),
    ],
)  # fmt: skip
def test_it_is_what_it_is_short_for(
    opened: Opened, scheme: str, spelled: dict[str, Any]
) -> None:
    named = choices(opened, LAST, {"ops": [LAST], "scheme": scheme})
    assert named == choices(opened, LAST, {"ops": [LAST], **spelled})
    assert len(named) > 1 or scheme == "float"


def test_the_later_rule_wins_field_by_field(opened: Opened) -> None:
    named = {"ops": [LAST], "scheme": "int8-static+gptq+mse"}
    narrower = choices(opened, LAST, named, {"types": ["linear"], "weight": "int4"})
    assert {str(s) for s in narrower[:-1]} == {
        "static w:int4/channel x:uint8-asym/tensor gptq mse",
        "static w:int4/tensor x:uint8-asym/tensor gptq mse",
    }
    other = choices(opened, LAST, named, {"types": ["linear"], "algorithm": "hqq"})
    assert {str(s.algorithm) for s in other[:-1]} == {"hqq"}
    assert {s.mode for s in other[:-1]} == {"static"}
    kept = {"types": ["linear"], "keep": "float"}
    assert choices(opened, LAST, kept, named) == choices(opened, LAST, named)
    assert len(choices(opened, LAST, named, kept)) == 1


def test_what_cannot_take_it_stays_in_float_and_is_told(opened: Opened) -> None:
    # Rows of 48 values are no whole groups of 64.
    space = space_under(opened, {"scheme": "nf4-weight-only"})
    assert not space.by_name[FIRST].tunable
    assert space.by_name[LAST].tunable
    told = [note for note in space.notes if "nf4-weight-only" in note]
    assert told == [
        "2 of 3 ops cannot take nf4-weight-only and stay in float: 0, 1",
    ]
    with pytest.raises(ConfigError, match="'nf4' for no op that its rule names"):
        space_under(opened, {"ops": [FIRST], "scheme": "nf4"})
    with pytest.raises(ConfigError, match="simulated = true admits that"):
        space_under(opened, {"ops": [LAST], "scheme": "fp8-dynamic"})


def test_a_later_weight_that_cannot_be_had_is_an_error(opened: Opened) -> None:
    # Named by its weight, nothing stays in float by itself.
    later = {"ops": [FIRST], "weight": {"dtype": "nf4"}}
    with pytest.raises(ConfigError, match=r"leave op '1' .* nothing that torch"):
        space_under(opened, {"scheme": "int4-weight-only"}, later)


def test_tables_take_the_stored_form(opened: Opened) -> None:
    space = space_under(opened, {"scheme": "int8-static"})
    assert {s.mode for s in space.by_name[TABLE].choices[:-1]} == {"weight_only"}
    assert {s.mode for s in space.by_name[FIRST].choices[:-1]} == {"static"}


def test_widths_may_differ_by_op_and_by_type() -> None:
    rules = [
        {"types": ["embedding"], "scheme": "int4-weight-only(granularity=channel)"},
        {"types": ["linear"], "scheme": "int8-static+mse"},
        {"ops": [LAST], "scheme": "w4a8-static+gptq"},
    ]
    made = octavo.quantize_model(model(), {"rules": rules}, [ids()])
    taken = {op: str(scheme) for op, scheme in made.candidate.recipe.schemes.items()}
    assert taken == {
        TABLE: "weight_only w:int4/channel",
        FIRST: "static w:int8/channel x:uint8-asym/tensor mse",
        LAST: "static w:int4/channel x:uint8-asym/tensor gptq",
    }


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"scheme": "int8-static+"}, "a method after a '\\+' is empty"),
        ({"scheme": "int8-statik"}, "did you mean 'int8-static'"),
        ({"scheme": "int8-static", "weight": "int4"}, "weight would say it again"),
        ({"scheme": "int8-static", "keep": "float"}, "leaves its ops alone"),
        ({"scheme": "smoothquant"}, 'rule 1: .* require = \\["smoothquant"\\]'),
        ({"scheme": "awq"}, "write algorithm:awq .* require"),
        ({"scheme": "outlier-suppression"}, "write token for its calibrator"),
        ({"scheme": "int4+distill"}, "learns for the whole model"),
    ],
)
def test_what_a_rule_cannot_say_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        octavo.quantize_model(model(), {"rules": [rule]}, [ids()])
    with pytest.raises(ConfigError, match=message):
        octavo.autotune(model(), lambda _: 1.0, [ids()], config={"rules": [rule]})


def test_a_strangers_method_may_be_a_rules(opened: Opened) -> None:
    settings = TuningConfig.read(rules=[{"scheme": "int8-dynamic+round-down"}])
    space = build_space(opened, settings.rules, host=stranger())
    assert {str(s.algorithm) for s in space.by_name[LAST].choices[:-1]} == {
        "Round_Down"
    }


def test_rules_without_names_are_written_as_before() -> None:
    settings = TuningConfig.read(rules=[{"ops": "a"}, {"scheme": "gptq"}])
    plain, named = settings.model_dump(mode="json")["rules"]
    assert "scheme" not in plain
    assert named["scheme"] == "gptq"
    assert TuningConfig.read(settings.model_dump(exclude_unset=True)) == settings
