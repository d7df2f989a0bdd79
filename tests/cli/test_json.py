"""One JSON object on standard output, for programs; and nothing beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Command, tune_arguments


def figures_belong_together(cost: dict[str, Any], unit: str) -> bool:
    """True if float's figure times the ratio is the figure."""
    product = cost[f"float_{unit}"] * cost["ratio"]
    return product == pytest.approx(cost[unit])


def test_tune_and_report_tell_the_same_outcome(
    octavo: Command, model: Path, data: Path
) -> None:
    ended = octavo(*tune_arguments(model, data), "-o", "r", "--json")
    told = json.loads(ended.out)
    assert ended.code == told["exit_code"] == 0
    assert told["goal_met"] is True
    assert told["reason"]
    best = told["best"]
    assert best["backend"] == "onnx"
    assert figures_belong_together(best["latency"], "ms")
    assert figures_belong_together(best["size"], "bytes")
    score = best["score"]
    assert score["metric"] == "accuracy"
    assert score["samples"] == 150
    assert score["low"] <= score["value"] <= score["high"]
    assert Path(told["report"]).is_file()
    assert Path(told["history"]).is_file()
    assert Path(told["model"]).is_file()
    assert "onnxruntime" in told["load"]
    again = json.loads(octavo("report", "r", "--json").out)
    shared = told.keys() & again.keys() - {"interrupted"}
    assert {key: again[key] for key in shared} == {key: told[key] for key in shared}


def test_quantize_ends_with_float_against_quantized(
    octavo: Command, model: Path, data: Path
) -> None:
    command = ("quantize", model, "--data", data, "--metric", "accuracy", "-o", "q")
    told = json.loads(octavo(*command, "--json").out)
    assert told["exit_code"] == 0
    assert figures_belong_together(told["latency"], "ms")
    assert figures_belong_together(told["size"], "bytes")
    assert told["size"]["bytes"] < told["size"]["float_bytes"]
    assert told["scores"]["accuracy"]["float"] == 1.0
    assert told["outputs"][0]["sqnr_db"] > 10
    assert Path(told["model"]).is_file()
    image = np.zeros((2, 1, 8, 8), np.float32)
    names = {"image": image}
    exec(told["load"], names)
    assert names["outputs"][0].shape == (2, 5)
    shown = octavo(*command, "--ledger")
    assert "as requested" in shown.out
    assert "SQNR" in shown.out
    without = octavo("quantize", model, "--scheme", "int8-dynamic", "-o", "d")
    assert "float" in without.out
    assert "--data gives samples" in without.out


def test_a_dry_run_quantizes_nothing(
    octavo: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    ended = octavo("quantize", model, "--data", data, "--dry-run", "--json")
    assert json.loads(ended.out)["ops"] == 2
    assert not list(tmp_path.iterdir())


def test_combined_transforms_are_shown_in_their_order(
    octavo: Command, model: Path, data: Path
) -> None:
    Path("both.toml").write_text(
        'transforms = [["smoothquant", "equalization"]]\n[[rules]]\nmode = "static"\n'
    )
    command = ("quantize", model, "--scheme", "both.toml", "--data", data)
    planned = octavo(*command, "--dry-run")
    assert "transforms  smoothquant -> equalization" in planned.out
    octavo(*command, "-o", "both")
    octavo("quantize", model, "--data", data, "-o", "plain")
    order = "smoothquant -> equalization"
    assert f"transforms {order}" in octavo("inspect", "both").out
    assert order in octavo("compare", "both", "plain").out
    told = json.loads(octavo("compare", "both", "plain", "--json").out)
    assert told["a"]["transforms"] == ["smoothquant", "equalization"]
    assert told["b"]["transforms"] == []
    Path("several.toml").write_text('transforms = ["smoothquant", "equalization"]\n')
    ended = octavo("quantize", model, "--scheme", "several.toml", "--data", data)
    assert ended.code == 2
    assert '[["smoothquant", "equalization"]]' in ended.err


def test_check_holds_a_result_against_its_record(
    octavo: Command, model: Path, data: Path, tuned: Path
) -> None:
    ended = octavo("check", tuned, "--data", data, "--json")
    told = json.loads(ended.out)
    assert ended.code == told["exit_code"] == 0
    assert told["ok"] is True
    assert told["score"]["samples"] == 200
    Path("worse.py").write_text("def score(model):\n    return 0.1\n")
    ended = octavo("check", tuned, "--evaluate", "worse:score", "--json")
    told = json.loads(ended.out)
    assert ended.code == told["exit_code"] == 1
    assert told["ok"] is False
    assert "accuracy >= 0.8" in told["reason"]
    compared = octavo("check", tuned, "--data", data, "--metric", "agreement")
    assert compared.code == 2
    assert "--float" in compared.err
    float_given = ("--metric", "agreement", "--float", model)
    assert octavo("check", tuned, "--data", data, *float_given).code == 0


def test_a_damaged_result_does_not_check(
    octavo: Command, data: Path, tuned: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken" / "model").mkdir(parents=True)
    record = (tuned / "octavo.json").read_bytes()
    (tmp_path / "broken" / "octavo.json").write_bytes(record)
    ended = octavo("check", "broken", "--data", data, "--json")
    assert ended.code == 1
    assert json.loads(ended.out)["error"]["message"]


def test_compare_times_both_and_names_the_ops_that_differ(
    octavo: Command, model: Path, data: Path, tuned: Path
) -> None:
    told = json.loads(octavo("compare", tuned, model, "--data", data, "--json").out)
    assert told["a"]["score"]["metric"] == "accuracy"
    assert figures_belong_together(told["a"]["latency"], "ms")
    assert told["b"]["bytes"] == model.stat().st_size
    timed = told["timed"]
    assert timed["a_ms"] == pytest.approx(timed["b_ms"] * timed["ratio"])
    assert timed["low"] <= timed["ratio"] <= timed["high"]
    assert {row["b"] for row in told["ops"]} == {"float"}
    assert "classifier" in {row["op"] for row in told["ops"]}
    same = octavo("compare", tuned, tuned)
    assert "every op takes the same scheme" in same.out


def test_settings_of_a_backend_are_named_on_the_command_line(
    octavo: Command, model: Path, data: Path
) -> None:
    command = [*tune_arguments(model, data), "-o", "r", "--dry-run", "--json"]
    searched = ["-b", "onnx(threads=1|2)", "-b", "numpy", "--baseline", "numpy"]
    told = json.loads(octavo(*command, *searched).out)
    names = [space["backend"] for space in told["backends"]]
    assert names == ["onnx(threads=1)", "onnx(threads=2)", "numpy"]
    assert told["baseline"] == "numpy"
    twice = octavo(*command, "-b", "onnx", "-b", "onnx")
    assert twice.code == 2
    assert "named twice with the same settings" in twice.out + twice.err


def test_what_is_quantized_with_settings_is_shown_with_them(
    octavo: Command, model: Path, data: Path
) -> None:
    quantized = ["quantize", model, "--scheme", "int8-dynamic", "-o", "q"]
    octavo(*quantized, "-b", "numpy(threads=2)")
    assert "backend numpy (threads = 2)" in octavo("inspect", "q").out
    told = json.loads(octavo("inspect", "q", "--json").out)
    assert told["backend"] == "numpy"
    assert told["backend_settings"]["threads"] == 2
    several = octavo(*quantized, "-b", "numpy(threads=1|2)")
    assert several.code == 2
    assert "nothing here compares them" in several.out + several.err


def test_a_dry_run_does_nothing_and_says_what_it_would(
    octavo: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    command = [*tune_arguments(model, data), "-o", "r", "--dry-run"]
    ended = octavo(*command, "--json")
    told = json.loads(ended.out)
    assert ended.code == told["exit_code"] == 0
    assert told["max_trials"] == 2
    assert told["minimise"] == ["size", "latency"]
    assert told["backends"][0]["ops"] == 2
    assert [] in told["backends"][0]["transforms"]
    assert sorted(tmp_path.rglob("*")) == before
    assert "at most 2 evaluations" in octavo(*command).out
