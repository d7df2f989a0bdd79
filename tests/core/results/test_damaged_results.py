"""Damaged results and wrong arguments: one typed error that names the file, and exit codes without
a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.adapters.numpy.graph import Builder, Graph
from octavo.core.errors import ConfigError, OctavoError, StoreError
from octavo.core.report import report_data
from octavo.core.results.result import read_manifest
from octavo.core.storage.history import read_history
from octavo.core.values.trial import Measurement, Trial

ROWS = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)


def graph() -> Graph:
    b = Builder()
    return b.graph(
        b.Gemm(
            b.input("x", (None, 8)),
            np.eye(8, dtype=np.float32),
            np.zeros(8, np.float32),
            name="only",
        )
    )


def score(model: Any) -> float:
    return 1 - float(np.abs(model(ROWS) - ROWS).mean())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("saved")
    result = octavo.autotune(
        graph(),
        score,
        [ROWS],
        max_trials=2,
        minimise="size",
        tolerance=0.5,
        confirm=False,
        storage=home / "h.db",
    )
    return result.save(home / "result")


def changed(saved: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    import shutil

    shutil.copytree(saved, folder)
    raw = json.loads((folder / "octavo.json").read_text())
    raw = change(raw) or raw
    (folder / "octavo.json").write_text(
        raw if isinstance(raw, str) else json.dumps(raw)
    )
    return folder


def dropped(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        for step in path[:-1]:
            raw = raw[step]
        del raw[path[-1]]

    return change


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: Any) -> None:
        for step in path[:-1]:
            raw = raw[step]
        raw[path[-1]] = value

    return change


HEADS = [
    dropped("backend"),
    dropped("recipe"),
    dropped("environment"),
    put(3, "backend"),
    put([], "recipe"),
    put("x", "environment"),
    put(3, "backend_settings"),
    put(None, "format"),
    put(10**400, "format"),
    lambda raw: "[" * 100_000,
    lambda raw: "[]",
    lambda raw: " ",
    lambda raw: "nul",
]
RECORDS = [
    dropped("baseline"),
    dropped("reason"),
    dropped("best", "metrics"),
    put({}, "baseline", "metrics"),
    put("soon", "seconds"),
    put({"x": [1]}, "ops"),
    put(7, "ops"),
    put("x", "baseline", "number"),
    put(-1, "best", "number"),
    put([1], "trials"),
    put({"size": [1, 2]}, "best", "objectives"),
    put("no", "config"),
    put({"accuracy": {"tolerance": {}}}, "config"),
    put({"a": ["kernel", "", {"mode": "static"}]}, "best", "ledger"),
    put({"a": ["magic", "", None]}, "best", "ledger"),
    put({"baseline": 3}, "holdout"),
    put({"score": "much"}, "confirmed"),
    put("gone", "best", "state"),
]


@pytest.mark.parametrize("change", HEADS, ids=range(len(HEADS)))
def test_a_damaged_head_is_one_typed_error_for_every_reader(
    saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    folder = changed(saved, tmp_path / "r", change)
    for reader in (read_manifest, octavo.load):
        with pytest.raises(ConfigError, match=r"octavo\.json"):
            reader(folder)


@pytest.mark.parametrize("change", RECORDS, ids=range(len(RECORDS)))
def test_a_damaged_record_is_a_typed_error_of_the_report(
    saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    folder = changed(saved, tmp_path / "r", change)
    assert score(octavo.load(folder)) > 0.5  # the model is whole, and loads
    facts = read_manifest(folder)
    if change is RECORDS[4]:  # a report shows no total time
        report_data(facts)
        return
    with pytest.raises(ConfigError, match="damaged"):
        report_data(facts)


def test_a_record_of_a_later_version_that_holds_more_is_read(
    saved: Path, tmp_path: Path
) -> None:
    folder = changed(
        saved,
        tmp_path / "r",
        lambda raw: {**raw, "new": 1, "best": {**raw["best"], "new": [1]}},
    )
    assert report_data(read_manifest(folder)).baseline.number == 0


def test_an_infinity_that_json_cannot_hold_comes_back_as_one() -> None:
    from octavo.core.values.recipe import Recipe

    trial = Trial(
        1,
        Recipe(),
        objectives={"size": Measurement(1.0, 0.5, float("inf"), "bytes")},
        over={"size": float("inf")},
    )
    raw = json.loads(
        json.dumps(trial.to_json())
        .replace("-Infinity", "null")
        .replace("Infinity", "null")
    )
    again = Trial.from_json(raw)
    assert (again.objectives, again.over, again.margin) == (
        trial.objectives,
        trial.over,
        trial.margin,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect",),
        ("report",),
        ("history",),
        ("export", "--standalone", "-o", "out"),
    ],
)
@pytest.mark.parametrize(
    "damage",
    [lambda raw: "[" * 100_000, dropped("backend"), dropped("best", "metrics")],
    ids=["deep", "head", "record"],
)
def test_the_command_line_ends_with_a_message_and_no_traceback(
    saved: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    damage: Callable[[dict[str, Any]], Any],
) -> None:
    folder = changed(saved, tmp_path / "r", damage)
    name, *rest = arguments
    done = subprocess.run(
        [sys.executable, "-m", "octavo", name, str(folder), *rest],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.startswith("error: ")


@pytest.mark.parametrize("wrong", [3, object(), b"x", ["a"], None])
def test_what_is_no_path_is_refused(wrong: Any) -> None:
    for call in (
        octavo.load,
        octavo.quantize_model(graph(), "int8-static", [ROWS]).save,
    ):
        with pytest.raises(ConfigError, match="path"):
            call(wrong)


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "x" * 5000, "a\0b"])
def test_paths_that_cannot_be_are_refused(path: str) -> None:
    for call in (
        octavo.load,
        octavo.quantize_model,
        lambda p: octavo.autotune(graph(), score, [ROWS], storage=p, max_trials=1),
    ):
        with pytest.raises(OctavoError):
            call(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"callbacks": 3},
        {"callbacks": [3]},
        {"backends": 3},
        {"backends": [object()]},
        {"executor": 3},
        {"executor": "elsewhere"},
        {"eval_fn": None},
        {"calibration": 3},
        {"storage": "sqlite://"},
    ],
)
def test_arguments_of_another_type_are_refused_before_anything_runs(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    given: dict[str, Any] = {
        "eval_fn": score,
        "calibration": [ROWS],
        "storage": tmp_path / "h.db",
        **wrong,
    }
    with pytest.raises(OctavoError):
        octavo.autotune(graph(), max_trials=1, **given)


def test_a_history_may_be_called_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    octavo.autotune(
        graph(),
        score,
        [ROWS],
        max_trials=1,
        minimise="size",
        tolerance=0.5,
        confirm=False,
        storage="sqlite.db",
    )
    assert (tmp_path / "sqlite.db").is_file()
    assert len(read_history("sqlite.db")[1]) == 2


@pytest.mark.parametrize("text", ["[" * 100_000, "null", '{"metrics": 3}', "\ud800"])
def test_rows_of_a_history_that_are_no_trials(
    saved: Path, tmp_path: Path, text: str
) -> None:
    import shutil
    import sqlite3

    shutil.copy(saved.parent / "h.db", tmp_path / "h.db")
    with sqlite3.connect(tmp_path / "h.db") as connection:
        connection.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'octavo:trial'",
            (json.dumps(text),),
        )
    with pytest.raises(StoreError, match=r"h\.db"):
        read_history(tmp_path / "h.db")
    with pytest.raises(StoreError, match=r"h\.db"):
        octavo.autotune(
            graph(),
            score,
            [ROWS],
            max_trials=2,
            minimise="size",
            tolerance=0.5,
            confirm=False,
            storage=tmp_path / "h.db",
        )


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere"
)
def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OctavoError):
        octavo.quantize_model(graph(), "int8-static", [ROWS]).save(tmp_path / "r")
