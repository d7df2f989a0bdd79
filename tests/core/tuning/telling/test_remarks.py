"""What a run tells: once, to whoever listens, to the log, and always into the result."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.system.log import remark
from octavo.core.tuning.telling.remarks import Remarks
from tests import tiny


class Notes(octavo.Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def varying(scores: Sequence[float] = (0.9, 0.8)) -> Any:
    rest = iter([*scores, *[0.9] * 50])
    return lambda model: next(rest)


def tune(folder: Path, score: Any = None, **settings: Any) -> octavo.Result:
    data = settings.pop("data", None) or tiny.calibration()
    return octavo.autotune(
        tiny.chain(),
        score or varying(),
        data,
        storage=folder / "h.db",
        objective={"minimise": ["size"]},
        host=tiny.host(),
        tolerance=0.05,
        max_trials=1,
        **settings,
    )


def test_where_nobody_listens_nothing_is_lost_and_nothing_is_a_warning(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = tune(tmp_path)
    (varies,) = [text for text in result.remarks if "varied by" in text]
    assert result.facts()["remarks"] == list(result.remarks)
    records = [r for r in logged.records if r.getMessage() == varies]
    assert [(r.name, r.levelname) for r in records] == [("octavo.tuning", "WARNING")]
    assert not records[0].shown


def test_listeners_are_told_and_the_log_says_so(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    notes = Notes()
    result = tune(tmp_path, callbacks=(notes,))
    # What is no warning is in the result and in the log; no listener is bothered with it.
    *shown, coverage = result.remarks
    assert notes.texts == shown
    assert coverage == "all 5,616 weights are quantized"
    told = [r for r in logged.records if r.levelname == "WARNING"]
    assert told
    assert all(r.shown for r in told)


def test_trials_are_logged_with_their_figures(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    result = tune(tmp_path)
    trials = [r for r in logged.records if getattr(r, "trial", 0)]
    assert [r.trial for r in trials] == [t.number for t in result.trials]
    assert {r.name for r in trials} == {"octavo.tuning"}
    assert trials[0].metrics == result.trials[0].metrics
    assert trials[0].objectives["size"] == result.trials[0].objectives["size"].value
    assert json.dumps([trials[0].metrics, trials[0].backend, trials[0].state])
    assert "trial 1 on tiny: score" in trials[0].getMessage()
    assert "the search ended: " in logged.text
    phases = [r.phase for r in logged.records if hasattr(r, "phase")]
    assert phases[:3] == ["opening", "float baseline", "calibration"]
    assert len(phases) < 12
    steps = [r for r in logged.records if r.levelname == "DEBUG"]
    assert not steps


def test_what_the_callers_code_should_change_is_a_warning_at_its_line(
    tmp_path: Path,
) -> None:
    labels = np.zeros(64, np.int64)
    data = [(batch, labels) for batch in tiny.calibration()]
    with pytest.warns(UserWarning, match="labels") as told:
        result = tune(tmp_path, tiny.accuracy, data=data)
    (warning,) = [w for w in told if "labels" in str(w.message)]
    assert Path(warning.filename).name == Path(__file__).name
    assert str(warning.message) in result.remarks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = tune(tmp_path, tiny.accuracy, data=data, callbacks=(Notes(),))
    assert str(warning.message) in again.remarks


def test_remarks_from_the_depths_come_to_the_run_that_goes_on(tmp_path: Path) -> None:
    """Two runs in turns in one thread: each has its own."""
    told = []

    def score(name: str) -> Any:
        def scored(model: Any) -> float:
            remark(f"deep in {name}", "quantizing")
            return tiny.accuracy(model)

        return scored

    runs = {
        name: octavo.prepare(
            tiny.chain(),
            score(name),
            tiny.calibration(),
            storage=tmp_path / f"{name}.db",
            objective={"minimise": ["size"]},
            host=tiny.host(),
            max_trials=1,
            accuracy={"guard": False},
        )
        for name in ("one", "two")
    }
    for run in runs.values():
        run.search()
    for name, run in runs.items():
        with run:
            told += [(name, t) for t in run.finish().remarks if t.startswith("deep")]
    assert told == [("one", "deep in one"), ("two", "deep in two")]


def test_without_a_run_a_remark_is_logged(logged: pytest.LogCaptureFixture) -> None:
    remark("by itself", "onnx")
    (record,) = logged.records
    assert (record.name, record.getMessage()) == ("octavo.onnx", "by itself")


def test_a_remark_is_told_once(logged: pytest.LogCaptureFixture) -> None:
    notes = Notes()
    remarks = Remarks((notes,))
    for text in ("a", "b", "a"):
        remarks.tell(text)
    assert remarks.texts == ("a", "b")
    assert notes.texts == ["a", "b"]
    assert len(logged.records) == 2


SCRIPT = """
import logging, sys
import octavo
from octavo.core.system.log import get_logger, remark
remark("nobody listens", "tuning")
if sys.argv[1:]:
    logging.basicConfig(filename=sys.argv[1], level=logging.INFO, format="%(name)s %(message)s")
    logging.getLogger("octavo.onnx").setLevel(logging.ERROR)
    remark("to a file", "tuning")
    remark("too low", "onnx")
    get_logger("storage").debug("a step")
"""


def test_a_script_is_silent_until_it_listens(tmp_path: Path) -> None:
    file = tmp_path / "octavo.log"
    for arguments in ([], [str(file)]):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout + done.stderr == ""
    assert file.read_text() == "octavo.tuning to a file\n"


def test_the_package_has_a_handler_that_does_nothing() -> None:
    handlers = logging.getLogger("octavo").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)
