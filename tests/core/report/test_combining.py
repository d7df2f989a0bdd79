"""What a run is told to combine: settings that can be pasted, and only what was not tried."""

from __future__ import annotations

import tomllib
from types import SimpleNamespace
from typing import Any

from octavo.core.opening.config import TuningConfig
from octavo.core.report.combining import untried_combinations
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec

STATIC = OpScheme(
    mode="static",
    weight=QuantSpec(dtype="int8", granularity="channel"),
    input=QuantSpec(dtype="uint8", symmetric=False),
)
NARROW = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int4"))
BOTH = (PartChoice(kind="smoothquant"), PartChoice(kind="hadamard"))


def told(scheme: OpScheme, *transforms: PartChoice) -> list[str]:
    trial: Any = SimpleNamespace(recipe=Recipe({"a": scheme}, transforms))
    op = SimpleNamespace(name="a", type="linear")
    data: Any = SimpleNamespace(ops=[op], trials=[trial])
    return [toml for _, toml in untried_combinations(trial, data)]


def test_only_what_no_trial_combined_is_proposed_and_it_can_be_pasted() -> None:
    (transforms,) = told(STATIC)
    config = TuningConfig.read(tomllib.loads(transforms))
    assert BOTH in config.combinations
    assert told(STATIC, BOTH[0]) == [transforms]
    assert told(STATIC, *BOTH) == []
    (chain,) = told(NARROW)
    (rule,) = TuningConfig.read(tomllib.loads(chain)).rules
    assert rule.algorithm == ((PartChoice(kind="awq"), PartChoice(kind="gptq")),)
    refined = NARROW.variant(refined_by=(PartChoice(kind="gptq"),))
    assert told(refined) == []
