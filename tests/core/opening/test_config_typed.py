"""Whatever is wrong with a configuration is an error of octavo's own, and still a ValueError."""

import math
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.contract.parts import PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, UnknownPart
from octavo.core.opening.config import TuningConfig, seconds
from octavo.strategies import BayesianConfig

WRONG: list[Any] = [
    b"10min",
    [1],
    {"a": 1},
    object(),
    math.inf,
    -math.inf,
    math.nan,
    10**400,
    -1,
    True,
    1e300,
    "1e5s",
    "9" * 400,
    1 + 2j,
    len,
    (),
]


@pytest.mark.parametrize("value", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_a_wrong_duration_is_a_typed_error_however_it_is_given(value: Any) -> None:
    for way in (
        seconds,
        lambda v: TuningConfig(timeout=v),
        lambda v: TuningConfig.read(None, trial_timeout=v),
    ):
        with pytest.raises(ConfigError):
            way(value)


def test_a_trials_limit_that_a_timer_takes_for_none_is_refused() -> None:
    for nothing in (0, 1e-320, "0s", 1e-9):
        with pytest.raises(ConfigError, match="trial_timeout"):
            TuningConfig(trial_timeout=nothing)
    # No time for a trial is a setting; the baseline is measured all the same.
    assert TuningConfig(timeout=0).timeout == 0


@pytest.mark.parametrize("field", sorted(TuningConfig.model_fields))
def test_every_setting_refuses_what_it_is_not(field: str) -> None:
    for value in (object(), b"\xff", {1, 2}, 10**5000, [[[]]], {1: object()}, math.nan):
        with pytest.raises(octavo.OctavoError) as caught:
            TuningConfig(**{field: value})
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"accuracy": 3},
        {"accuracy": [1]},
        {"minimise": 3},
        {"minimise": object()},
        {"tolerance": b"x", "accuracy": 7},
        {1: 2},
        {"objective": 3},
        {"budgets": {"size": math.inf}},
        {"gram_megabytes": 1e308},
        {"max_trials": 2**70},
        {"seed": 2**32},
    ],
)
def test_mappings_and_overrides_are_read_or_refused(wrong: dict[Any, Any]) -> None:
    with pytest.raises(ConfigError):
        TuningConfig.read(wrong)
    if all(isinstance(key, str) for key in wrong):
        with pytest.raises(ConfigError):
            TuningConfig.read(None, **wrong)


def test_the_message_names_the_setting_inside_and_keeps_the_value_short() -> None:
    with pytest.raises(ConfigError, match=r"rules\.0\.weight") as caught:
        TuningConfig(rules=[{"weight": {"dtype": ["x" * 10_000, 3]}}])  # type: ignore[list-item]
    assert len(str(caught.value)) < 1000


def test_parts_of_a_run_refuse_in_the_same_way() -> None:
    for make in (
        lambda: octavo.OpScheme(mode="static"),
        lambda: octavo.QuantSpec(dtype="int8", granularity="rows"),
        lambda: octavo.RaceConfig(error=2),
        lambda: BayesianConfig(startup=10**400),
        lambda: octavo.PartChoice(options=()),  # type: ignore[call-arg]
        lambda: PartConfig(),  # type: ignore[call-arg]
    ):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "[" * 100_000),
        ("a.toml", "a = " + "[" * 100_000),
        ("a.yaml", "{a: " * 5_000),
        ("a.yaml", "a: &a [b, *a]"),
        ("a.yaml", "!!python/object:os.system {}"),
        ("a.yaml", "? [1, 2]\n: 3"),
        ("a.json", '{"timeout": Infinity}'),
        ("a.toml", "timeout = inf"),
        ("a.yaml", "timeout: .inf"),
        ("a.yaml", "timeout: 2020-01-01"),
        ("a.toml", "seed = 2020-01-01"),
        ("a.json", '{"\\ud800": 1}'),
        ("a.json", '{"strategy": "\\ud800"}'),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises((ConfigError, UnknownPart)):
        PluginHost(third_party=False).read(
            "strategies", TuningConfig.read(path).strategy
        )
