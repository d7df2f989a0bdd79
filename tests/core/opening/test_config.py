"""Settings from anywhere; unknown keys refused with the nearest name."""

import json
from pathlib import Path

import jsonschema
import pytest

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, UnknownPart
from octavo.core.opening.config import TuningConfig, seconds
from octavo.core.opening.config_schema import config_schema
from octavo.core.scoring.criteria.config import ToleranceConfig
from octavo.strategies import BayesianConfig
from tests import tiny

TOML = """
strategy = { kind = "bayesian", sampler = "tpe" }
max_trials = 50
timeout = "10min"
stop = "budget"
seed = 0
[accuracy]
metric = "accuracy"
tolerance = 0.01
mode = "relative"
higher_is_better = true
[objective]
minimise = ["latency", "size"]
[[rules]]
ops = ["encoder.layer.0.*"]
keep = "float"
[[rules]]
types = ["linear"]
weight = { dtype = ["int8", "int4"], granularity = ["channel", "group:32"] }
"""


@pytest.mark.parametrize("form", ["toml", "yaml", "json", "mapping", "python"])
def test_every_form_reads_alike(tmp_path: Path, form: str) -> None:
    import tomllib

    import yaml

    table = tomllib.loads(TOML)
    path = tmp_path / f"tune.{form}"
    match form:
        case "toml":
            path.write_text(TOML)
        case "yaml":
            path.write_text(yaml.safe_dump(table))
        case "json":
            path.write_text(json.dumps(table))
    config = TuningConfig.read(
        path if path.exists() else table if form == "mapping" else TuningConfig(**table)
    )
    assert config.timeout == 600
    assert config.strategy == {"kind": "bayesian", "sampler": "tpe"}
    assert config.rules[1].weight is not None
    assert config.rules[1].weight.dtype == ("int8", "int4")
    assert config == TuningConfig.read(table)


@pytest.mark.parametrize(("bad", "near"), [
    ({"strateg": "basic"}, "'strategy'"),
    ({"objective": {"minimize": ["size"]}}, "'minimise'"),
    ({"rules": [{"op": ["a"]}]}, "'ops'"),
    ({"rules": [{"weight": {"dtyp": "int8"}}]}, "'dtype'"),
    ({"executor": {"kinds": "process"}}, "'kind'"),
    ({"max_trials": 0}, "max_trials"),
    ({"timeout": "soon"}, "no duration"),
    ({"seed": -1}, "seed"),
    ({"gram_megabytes": -1}, "gram_megabytes"),
])  # fmt: skip
def test_a_wrong_setting_is_named_with_the_nearest(bad: dict, near: str) -> None:
    with pytest.raises(ConfigError, match=near):
        TuningConfig.read(bad)


def test_overrides_reach_their_tables() -> None:
    config = TuningConfig.read(
        {"accuracy": {"mode": "absolute"}},
        tolerance=0.5,
        metric="f1",
        minimise="size",
        max_trials=3,
    )
    assert config.accuracy == {"mode": "absolute", "tolerance": 0.5, "metric": "f1"}
    assert config.objective.minimise == ("size",)
    assert config.max_trials == 3


def test_parts_bring_their_own_settings() -> None:
    host = PluginHost(third_party=False)
    assert host.read(
        "strategies", {"kind": "bayesian", "sampler": "random"}
    ) == BayesianConfig(sampler="random")
    assert TuningConfig(strategy=BayesianConfig()).strategy["kind"] == "bayesian"
    with pytest.raises(ConfigError, match="'sampler'"):
        host.read("strategies", {"kind": "bayesian", "samplr": "tpe"})
    with pytest.raises(UnknownPart, match="'bayesian'"):
        host.read("strategies", "bayes")


def test_a_loss_must_say_its_direction() -> None:
    host = PluginHost(third_party=False)
    with pytest.raises(ConfigError, match="higher_is_better"):
        TuningConfig.read(metric="perplexity").criterion(host)
    assert TuningConfig.read(metric="perplexity", higher_is_better=False).criterion(
        host
    ) == ToleranceConfig(metric="perplexity", higher_is_better=False)


def test_schema_covers_third_parties_and_accepts_the_example() -> None:
    import tomllib

    schema = config_schema(tiny.host())
    jsonschema.validate(tomllib.loads(TOML), schema)
    jsonschema.validate({"backends": [{"kind": "tiny", "bits": 8}]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"backends": [{"kind": "tiny", "bitz": 8}]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"strateg": "basic"}, schema)


def test_schema_knows_settings_that_are_searched() -> None:
    schema = config_schema(tiny.host())
    several = {"kind": "onnx", "threads": [1, 2], "providers": [["A"], ["B", "C"]]}
    for backend in (several, "onnx(threads=1|2)", "onnx"):
        jsonschema.validate({"backends": [backend], "baseline": "numpy"}, schema)
    one = {"kind": "onnx", "threads": 1}
    jsonschema.validate({"backends": ["tiny"], "baseline": one}, schema)
    for wrong in (
        {"backends": [{"kind": "onnx", "threads": ["x", 2]}]},
        {"backends": ["onx(threads=1)"]},
        {"baseline": {"kind": "onnx", "threads": [1, 2]}},
        {"baseline": ["onnx", "numpy"]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90),
        ("500ms", 0.5),
        ("10min", 600),
        ("2h", 7200),
        ("1.5 m", 90),
        (30, 30),
        (None, None),
    ],
)
def test_durations(text: object, value: float | None) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [("x.toml", "a = ["), ("x.json", "[1]"), ("x.yaml", "a: [b"), ("x.ini", "a=1")],
)
def test_a_broken_file_is_a_typed_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError):
        TuningConfig.read(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        TuningConfig.read(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        TuningConfig.read(tmp_path / "binary.toml")


def test_the_order_of_keywords_means_nothing() -> None:
    table = {"guard": False}
    first = TuningConfig.read(None, tolerance=1e-9, accuracy=table)
    second = TuningConfig.read(None, accuracy=table, tolerance=1e-9)
    assert first == second
    assert first.accuracy == {"guard": False, "tolerance": 1e-9}
