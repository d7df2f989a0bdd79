"""Transforms and algorithms in combination, as a configuration writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, SchemeError
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.config_schema import config_schema
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.tuning.axes import axes_of
from octavo.core.values.capability import Capability
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice
from octavo.core.values.space import TuningSpace
from tests import tiny
from tests.helpers import as_opened

HOST = PluginHost(third_party=False)
SMOOTH, TURN, AWQ = (PartChoice(kind=k) for k in ("smoothquant", "hadamard", "awq"))
BOTH = [["smoothquant", "hadamard"], "awq"]


def model() -> Any:
    return tiny._fitted()


def space(**settings: Any) -> TuningSpace:
    read = TuningConfig.read(settings)
    opened = as_opened(
        HOST.adapters()["numpy"].build().open(model(), tiny.calibration()[0])
    )
    return build_space(
        opened, read.rules, transforms=read.combinations, require=read.require
    )


def test_alternatives_are_parts_or_lists_of_parts() -> None:
    config = TuningConfig.read(transforms=BOTH, require="equalization")
    assert config.combinations == ((SMOOTH, TURN), (AWQ,))
    assert config.require == (PartChoice(kind="equalization"),)
    written = config.model_dump(mode="json", exclude_defaults=True)
    assert written == {"transforms": BOTH, "require": ["equalization"]}
    assert TuningConfig.read(written) == config
    # A list of one is that one, and is written so: what older runs are compared by.
    assert TuningConfig.read(transforms=[["awq"]]) == TuningConfig.read(
        transforms="awq"
    )
    with_settings = TuningConfig.read(
        transforms=[["awq", {"kind": "smoothquant", "alpha": 0.7}]]
    )
    assert with_settings.combinations[0][1].table()["alpha"] == 0.7


@pytest.mark.parametrize("wrong", [[[]], [["awq", []]], [3], [[["awq"]]]])
def test_what_is_no_alternative_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="alternative"):
        TuningConfig.read(transforms=wrong)


def test_a_space_has_each_combination_after_what_is_required() -> None:
    assert space().transforms == ((),)
    assert space(transforms=BOTH).transforms == ((), (SMOOTH, TURN), (AWQ,))
    required = space(transforms=["hadamard", "smoothquant"], require="awq")
    assert required.transforms == ((AWQ,), (AWQ, TURN), (AWQ, SMOOTH))
    assert required.recipe({}).transforms == (AWQ,)
    assert required.recipe({}, (AWQ, TURN)).transforms == (AWQ, TURN)
    assert space(require=["awq", "hadamard"]).transforms == ((AWQ, TURN),)
    with pytest.raises(ConfigError, match="what all others begin with"):
        TuningSpace("numpy", required.units, ((AWQ,), (TURN,)))


def test_what_is_required_must_be_possible() -> None:
    opened = as_opened(
        HOST.adapters()["numpy"].build().open(model(), tiny.calibration()[0])
    )
    capability = opened.capability
    without = Capability(
        capability.backend, capability.device, capability.offers, frozenset()
    )
    lame = type(opened)(opened.name, opened.session, opened.view, without)
    with pytest.raises(ConfigError, match="smoothquant -> hadamard asks of every"):
        build_space(lame, require=(SMOOTH, TURN))


def test_algorithms_of_a_rule_chain_likewise() -> None:
    rule = {"mode": "weight_only", "weight": "int4"}
    found = space(rules=[{**rule, "algorithm": [["awq", "gptq"], "hqq"]}])
    chains = {s.rounding for u in found.tunable for s in u.choices if s.weight}
    assert chains == {"awq -> gptq", "hqq"}
    assert Rule(algorithm=["awq", "gptq"]) != Rule(algorithm=[["awq", "gptq"]])
    with pytest.raises(SchemeError, match=r"gptq -> hqq: hqq cannot go on"):
        octavo.quantize_model(
            model(),
            {"rules": [{**rule, "algorithm": [["gptq", "hqq"]]}]},
            tiny.calibration(),
        )


def test_several_alternatives_without_a_search_are_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        octavo.quantize_model(object(), {"transforms": ["smoothquant", "awq"]})
    said = str(refused.value)
    assert 'transforms = [["smoothquant", "awq"]] for all in that order' in said
    assert 'transforms = ["smoothquant"] for one of them' in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"transforms": [["smoothquant", "hadamard"]]}, (SMOOTH, TURN)),
        ({"transforms": ["hadamard"], "require": ["smoothquant"]}, (SMOOTH, TURN)),
        ({"require": ["smoothquant", "hadamard"]}, (SMOOTH, TURN)),
        ({"transforms": "awq"}, (AWQ,)),
        ({}, ()),
    ],
    ids=str,
)
def test_one_combination_is_applied_in_its_order(
    settings: dict[str, Any], expected: tuple[PartChoice, ...]
) -> None:
    config = {"rules": [{"mode": "static"}], **settings}
    made = octavo.quantize_model(model(), config, tiny.calibration())
    recipe = made.candidate.recipe
    assert recipe.transforms == expected
    by_hand = octavo.quantize_model(model(), recipe, tiny.calibration())
    x = tiny.calibration()[0]
    np.testing.assert_array_equal(made.candidate(x), by_hand.candidate(x))


def test_the_order_is_shown_and_kept() -> None:
    recipe = Recipe({}, (SMOOTH, TURN), "numpy")
    assert "smoothquant -> hadamard" in repr(recipe)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.digest != Recipe({}, (TURN, SMOOTH), "numpy").digest
    both = space(transforms=BOTH, rules=[{"mode": "static"}])
    assert axes_of({"numpy": both}).choices["transforms"] == (
        "none",
        "smoothquant -> hadamard",
        "awq",
    )


@pytest.mark.parametrize("strategy", ["auto", "exhaustive"])
def test_a_search_compares_combinations_and_keeps_what_is_required(
    strategy: str,
) -> None:
    result = octavo.autotune(
        model(),
        tiny.accuracy,
        tiny.calibration(),
        config={
            "rules": [{"mode": ["static"], "weight": {"granularity": "channel"}}],
            "transforms": [["hadamard", "equalization"], "hadamard"],
            "require": ["smoothquant"],
        },
        strategy=strategy,
        tolerance=1e-9,
        max_trials=8,
        minimise="size",
        confirm=False,
        progress=False,
    )
    tried = {t.recipe.transforms for t in result.trials if len(t.recipe)}
    assert all(t[:1] == (SMOOTH,) for t in tried)
    allowed = {
        (SMOOTH,),
        (SMOOTH, TURN),
        (SMOOTH, TURN, PartChoice(kind="equalization")),
    }
    assert tried <= allowed
    assert not [t.error for t in result.trials if t.error]


def test_the_schema_knows_chains() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = config_schema(HOST)
    good = {
        "transforms": BOTH,
        "require": ["smoothquant"],
        "rules": [{"algorithm": [["awq", {"kind": "gptq", "damping": 0.1}], "rtn"]}],
    }
    jsonschema.validate(good, schema)
    for wrong in ({"transforms": [["nope"]]}, {"require": [["awq"]]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
