"""``octavo schemes``: what each scheme by name would do to a model."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Command

FORMATS = ("int8-static", "int8-dynamic", "int4-weight-only", "float16", "float")


def test_a_model_s_formats_and_the_methods(octavo: Command, model: Path) -> None:
    told = json.loads(octavo("schemes", model, "--json").out)
    lines = {line["name"]: line for line in told["formats"]}
    assert set(FORMATS) <= set(lines)
    static = lines["int8-static"]
    assert static["aliases"] == ["static", "int8"]
    assert static["kernels"] == static["ops"] > 0
    assert 0.2 < static["share"] < 0.35
    assert static["needs_data"]
    assert static["speed"] is None
    # A convolution has no 4-bit weights in groups here, and it is said why.
    narrow = lines["int4-weight-only"]
    assert narrow["kernels"] < narrow["ops"]
    assert sum(narrow["left"].values()) == narrow["ops"] - narrow["kernels"]
    assert lines["float"]["share"] == 1.0
    methods = {(m["name"], m["kind"]): m for m in told["methods"]}
    gptq = methods["gptq", "algorithm"]
    assert gptq["needs_data"]
    assert gptq["format"] == "int4-weight-only"
    assert gptq["summary"]
    assert not methods["hqq", "algorithm"]["needs_data"]
    assert methods["smoothquant", "transform"]["modes"] == ["dynamic", "static"]
    assert told["aliases"]["static"] == "int8-static"


def test_what_is_listed_can_be_asked_for(
    octavo: Command, model: Path, data: Path
) -> None:
    told = json.loads(octavo("schemes", model, "--json").out)
    for line in told["formats"]:
        plan = octavo(
            "quantize", model, "--scheme", line["name"], "--data", data, "--dry-run"
        )
        assert (plan.code == 0) is bool(line["kernels"] or line["name"] == "float")


def test_once_timed_there_are_size_and_speed(
    octavo: Command, model: Path, data: Path
) -> None:
    told = octavo("schemes", model, "--time", "--data", data, "--json")
    lines = {line["name"]: line for line in json.loads(told.out)["formats"]}
    for name, line in lines.items():
        assert (line["speed"] is not None) is (line["kernels"] > 0), name
    assert lines["int8-static"]["speed"] > 0
    assert 0 < lines["int8-static"]["size_ratio"] < 1


def test_tables_for_people(octavo: Command, model: Path) -> None:
    shown = octavo("schemes", model).out
    for words in ("int8-static", "kernel", "refused", "smoothquant", "needs data"):
        assert words in shown
    assert "Ops that cannot take a format" in shown


def test_timing_needs_samples(octavo: Command, model: Path) -> None:
    ended = octavo("schemes", model, "--time")
    assert ended.code == 2
    assert "give --data" in ended.err


def test_a_scheme_with_methods_makes_a_folder_of_its_name(
    octavo: Command, model: Path, data: Path
) -> None:
    scheme = "int8_static+equalization(iterations=2)+bias-correction"
    ended = octavo("quantize", model, "--scheme", scheme, "--data", data)
    assert ended.code == 0, ended.err
    folder = Path(f"{model.stem}-int8-static+equalization-iterations-2+bias-correction")
    assert json.loads((folder / "octavo.json").read_text())["recipe"]["transforms"]


def test_what_a_scheme_lacks_or_mistakes_is_told_before_work(
    octavo: Command, model: Path
) -> None:
    for scheme, message in (
        ("gptq", "needs calibration samples"),
        ("int8-dynamic+smoothquant", "needs calibration samples"),
        ("int8-dynamic+smoothquand", "did you mean 'smoothquant'"),
        ("int8-dynamic+", "a method after a '+' is empty"),
        ("absent.toml", "does not exist"),
        ("some/where", "does not exist"),
    ):
        ended = octavo("quantize", model, "--scheme", scheme)
        assert ended.code == 2, scheme
        assert message in " ".join(ended.err.split()), scheme


def test_schemes_are_completed_by_formats_then_by_methods() -> None:
    from octavo.cli.quantize import _names

    assert "int8-static" in _names("int8")
    assert "gptq" in _names("GP")
    assert _names("int8_static+smooth") == ["int8_static+smoothquant"]
