"""The report: whole, escaped, self-contained, and right in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import octavo
from octavo.core.report import OpLine, ReportData, render, report_data, write
from octavo.core.results.result import read_manifest
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec
from octavo.core.values.trial import Measurement, Trial
from tests import tiny

INT8 = OpScheme(
    mode="static",
    weight=QuantSpec(dtype="int8", granularity="channel"),
    input=QuantSpec(dtype="uint8", symmetric=False),
)
HOSTILE = "<script>document.title='owned'</script> & \"$x_1$\" conv[0]"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


def measured(latency: float, size: float) -> dict[str, Measurement]:
    return {
        "latency": Measurement(
            latency, latency * 0.97, latency * 1.04, "ms", latency / 4.0
        ),
        "size": Measurement(size, size, size, "bytes", size / 800_000),
    }


def data(ops: int = 6, trials: int = 9, hostile: bool = True) -> ReportData:
    names = [
        HOSTILE if hostile and i == 1 else f"features.{i}.conv" for i in range(ops)
    ]
    lines = [
        OpLine(
            n,
            "conv",
            9 * 64 * (i + 1),
            Applied(
                INT8,
                INT8 if i else FLOAT,
                "kernel",
                "" if i else "no integer kernel takes 3-D input here",
            ),
        )
        for i, n in enumerate(names)
    ]
    ledger = {line.name: line.line for line in lines}
    recipe = Recipe(dict.fromkeys(names, INT8), (), "onnx")
    baseline = Trial(
        0,
        Recipe({}, (), "onnx"),
        metrics={"accuracy": 0.9958},
        passed=True,
        margin=1.0,
        objectives=measured(4.0, 800_000),
    )
    tried = [
        Trial(
            i,
            Recipe(recipe.schemes, (), ("onnx", "torch", "numpy")[i % 3]),
            metrics={"accuracy": 0.9958 - 0.003 * (i % 6)},
            passed=i % 6 < 4,
            margin=0.1,
            objectives=measured(1.2 + 0.3 * i, 220_000 + 9_000 * i),
            ledger=ledger,
            seconds={"evaluate": 0.31, "measure": 0.2},
        )
        for i in range(1, trials)
    ]
    tried.append(
        Trial(
            trials,
            recipe,
            state="failed",
            error=f"Traceback (most recent call last):\n  ValueError: {HOSTILE}",
        )
    )
    return ReportData(
        title="digits.onnx",
        goal_met=True,
        reason="trial 1 is the fastest of 6 that reach the goal",
        goal="accuracy >= 0.98584",
        metric="accuracy",
        higher_is_better=True,
        bound=0.98584,
        baseline=baseline,
        best=tried[0],
        trials=tried,
        pareto=frozenset({1, 2}),
        ops=lines,
        notes=("softmax has no int8 scheme on this device",),
        command="octavo tune digits.onnx --data digits.npz --metric accuracy --seed 0",
        settings={"strategy": "auto", "seed": "0"},
        versions={"python": "3.11", "octavo": "0.1.0"},
        created="2026-01-01T00:00:00Z",
    )


class Page(HTMLParser):
    """Collects what a check needs; an unbalanced page fails."""

    VOID = frozenset(("meta", "link", "input", "br", "hr", "img"))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.references += [
            v for k, v in attrs if k in ("href", "src", "xlink:href") and v
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(text)


def test_a_report_is_complete_in_itself_and_well_formed() -> None:
    drawn = render(data())
    page = Page(drawn)
    assert all(reference.startswith("#") for reference in page.references), (
        "nothing is fetched from elsewhere"
    )
    assert "://" not in re.sub(r"http://www\.w3\.org/(2000/svg|1999/xlink)", "", drawn)
    assert len(page.ids) == len(set(page.ids)), (
        "ids are unique though several charts share the page"
    )
    known = set(page.ids)
    assert all(r[1:] in known for r in page.references)
    for tag, attributes in page.tags:
        for label in (attributes.get("aria-labelledby") or "").split():
            assert label in known, tag


def test_names_and_errors_of_others_are_text_and_never_markup() -> None:
    drawn = render(data())
    page = Page(drawn)
    assert "<script>document" not in drawn
    assert HOSTILE in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 1


def test_every_figure_of_a_trial_is_there_and_what_stayed_in_float_says_why() -> None:
    run = data()
    text = " ".join(Page(render(run)).text)
    for trial in run.trials[:-1]:
        assert f"{trial.metrics['accuracy']:.5g}" in text
    assert "no integer kernel takes 3-D input here" in text
    assert "softmax has no int8 scheme on this device" in text
    assert run.command in text
    assert run.left_in_float == (
        ("conv", "no integer kernel takes 3-D input here", ("features.0.conv",), 576),
    )


def test_charts_have_a_name_and_a_description() -> None:
    page = Page(render(data()))
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert [c["role"] for c in charts] == ["img"] * 3
    assert all(c["aria-labelledby"] for c in charts)
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")


def test_a_run_without_any_completed_trial_still_has_a_report() -> None:
    run = data()
    failed = replace(
        run,
        goal_met=False,
        reason="every trial failed",
        best=None,
        trials=run.trials[-1:],
        ops=(),
        bound=None,
        versions={},
    )
    text = " ".join(Page(render(failed)).text)
    assert "Goal not reached" in text
    assert "every trial failed" in text


def test_the_report_of_a_run_says_why_an_op_had_no_choice(tmp_path: Path) -> None:
    result = octavo.autotune(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        {
            "strategy": "basic",
            "max_trials": 2,
            "rules": [{"ops": ["layer.1"], "keep": "float"}],
        },
        minimise="size",
        host=tiny.host(),
        storage=tmp_path / "history.db",
        tolerance=0.05,
    )
    run = report_data(result.facts())
    assert [(op.name, op.is_float) for op in run.ops] == [
        (f"layer.{i}", i == 1) for i in range(4)
    ]
    assert [(kind, why, names) for kind, why, names, _ in run.left_in_float] == [
        (
            "linear",
            "kept in float by the rules, or by an op that decides with it",
            ("layer.1",),
        )
    ]
    assert run.bound == pytest.approx(result.baseline.metrics["score"] * 0.95)
    # A saved result tells the same.
    assert report_data(read_manifest(result.save(tmp_path / "out"))).ops == run.ops
    assert run.confirmed == result.best.metrics, (
        "deterministic scores are the same after a reload"
    )
    assert [row[0] for row in run.scores] == ["score", "score, saved and loaded again"]
    page = result.report(tmp_path / "page.html")
    assert "layer.1" in page.read_text()
    (tmp_path / "ordinary").touch()
    assert page.stat().st_mode == (tmp_path / "ordinary").stat().st_mode, (
        "others may read it where they may read other files"
    )
    assert not list(tmp_path.glob(".page*")), "nothing half-written is left"


def test_the_same_run_gives_the_same_page() -> None:
    assert render(data()) == render(data())


@pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium on this machine: `make system` installs one where apt is at hand",
)
def test_a_real_browser_shows_it_without_errors(tmp_path: Path) -> None:
    page = write(data(ops=40), tmp_path / "a report ü.html")
    shot = tmp_path / "shot.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--log-level=0",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *flags,
            "--window-size=1280,2400",
            f"--screenshot={shot}",
            "--virtual-time-budget=3000",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, "a script error or a blocked resource"
    assert shot.read_bytes().startswith(b"\x89PNG")
    dom = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    ).stdout
    assert "<title>digits.onnx · octavo</title>" in dom, (
        "the hostile op name did not run"
    )
    assert re.search(r'<p class="filter">', dom), (
        "the script ran: the ledger of a large model can be searched"
    )
