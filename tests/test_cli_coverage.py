"""The command line shows which weights stay float: of a model, of what was quantized, and of what
was saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from typer.testing import CliRunner, Result

from octavo.cli import app

RANDOM = np.random.default_rng(0)


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A product of 512 weights, and 32 numbers that are subtracted."""
    monkeypatch.chdir(tmp_path)
    held = [
        numpy_helper.from_array(RANDOM.normal(size=s).astype(np.float32), n)
        for n, s in (("w", (16, 32)), ("shift", (1, 32)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "layer"),
        helper.make_node("Sub", ["h", "shift"], ["y"], "shifted"),
    ]
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", w])
        for n, w in (("x", 16), ("y", 32))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], held)
    save(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
        ),
        "model.onnx",
    )
    np.savez("data.npz", x=RANDOM.normal(size=(32, 16)).astype(np.float32))
    return Path("model.onnx")


def test_quantize_shows_a_table_and_keeps_it(model: Path) -> None:
    shown = run(
        "quantize", model, "--scheme", "int8-dynamic", "--data", "data.npz", "-o", "out"
    ).stdout
    assert "32 of 544 weights (5.88 %) stay float" in shown
    assert "shift" in shown
    kept = json.loads(Path("out/octavo.json").read_text())["coverage"]
    assert (kept["total"], kept["quantized"], kept["kept"]) == (544, 512, 32)
    assert [row[0] for row in kept["rows"] if row[3] is None] == ["shift"]
    assert "32 of 544 weights" in run("inspect", "out").stdout


def test_inspect_names_what_is_in_no_op(model: Path) -> None:
    shown = run("inspect", model).stdout
    assert "in no op" in shown
    assert "shift" in shown
    (row,) = json.loads(run("inspect", model, "--json").stdout)["unclaimed"]
    assert (row["name"], row["shape"]) == ("shift", [1, 32])
    assert row["reason"]


def test_tune_ends_with_it(model: Path) -> None:
    arguments = (
        "--metric",
        "cosine",
        "--minimise",
        "size",
        "--tolerance",
        "0.5",
        "--max-trials",
        "1",
        "--no-report",
        "-o",
        "tuned",
    )
    shown = run(
        "tune", model, "--data", "data.npz", "--calibration-size", "16", *arguments
    ).output
    assert "of 544 weights" in shown
