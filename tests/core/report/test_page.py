"""The page: whole, escaped, self-contained, and the same figures everywhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import octavo
from octavo.core.report import ReportData, render, report_data, write
from octavo.core.report.page import drawn
from octavo.core.report.page.front import size_against_loss
from octavo.core.results.result import read_manifest
from octavo.core.values.layers import Layer
from octavo.core.values.scheme import PartChoice
from octavo.core.values.trial import Measurement
from tests import tiny

from . import runs
from .runs import HOSTILE, LONG, RIGHT_TO_LEFT, Page, run

OLD = Path(__file__).parents[2] / "data" / "release-0.1.0"


def island(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page)
    assert found is not None
    table: dict[str, object] = json.loads(found[1])
    return table


def test_a_page_is_complete_in_itself_and_well_formed() -> None:
    drawn = render(run())
    page = Page(drawn)
    assert drawn.startswith("<!doctype html>")
    assert all(reference.startswith("#") for reference in page.references), (
        "nothing is fetched from elsewhere"
    )
    assert "://" not in drawn
    assert len(page.ids) == len(set(page.ids))
    known = set(page.ids)
    assert {r[1:] for r in page.references} <= known, "every link leads somewhere"
    for tag, attributes in page.tags:
        for label in (attributes.get("aria-labelledby") or "").split():
            assert label in known, tag
        assert "style" not in attributes, "the policy takes no style but the sheet's"


def test_names_and_errors_of_others_are_text_and_never_markup() -> None:
    drawn = render(run())
    page = Page(drawn)
    assert "<script>document" not in drawn
    assert "</script><script" not in drawn
    for name in (HOSTILE, RIGHT_TO_LEFT, LONG):
        assert name in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 2, "the data and the script"


def test_no_script_and_no_style_but_the_pages_own_may_run() -> None:
    policy = next(
        attributes["content"]
        for tag, attributes in Page(render(run())).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_every_figure_is_there_beside_that_of_the_float_model_in_the_same_rounds() -> (
    None
):
    found = run()
    text = Page(render(found)).text
    for trial in found.trials[:-1]:
        assert f"{trial.metrics['accuracy']:.5g}" in text
        assert f"{trial.objectives['latency'].ratio:.3g} of 4 ms" in text
    assert "4.4 ms" in text, "the float model's own trial tells its own time"
    assert "2.1 ms, float 4 ms in the same rounds" in text
    assert "6 of 719 samples apart" in text


def test_the_conclusion_is_why_and_how_it_ended_is_a_footnote() -> None:
    text = Page(render(run())).text
    assert text.index("Trial 3 is the fastest") < text.index("8 trials were used up")
    missed = replace(run(), goal_met=False, reason="the closest: 0.4 against 1")
    assert "The closest: 0.4 against 1." in Page(render(missed)).text


def test_a_reader_is_told_what_to_do_next(tmp_path: Path) -> None:
    (tmp_path / "octavo.json").touch()
    page = write(run(), tmp_path / "report.html").read_text()
    assert "model = octavo.load(" in page
    assert str(tmp_path) in page, "where the page stands beside the result"
    missed = replace(run(trials=16), goal_met=False, reason="0.4 against 1")
    text = Page(render(missed)).text
    assert "The ops that cost most" in text
    assert "[[rules]]" in text
    assert "slower or larger than float" in text, "trial 14 is"


def test_an_op_has_one_row_with_what_is_known_of_it() -> None:
    drawn = render(run())
    heads = re.findall(
        r"<th scope=\"col\"[^>]*>([^<]*)</th>", drawn.split('id="op-table"')[1]
    )
    assert heads == [
        *("op", "type", "asked", "runs", "sensitivity", "sensitivity at"),
        *("weight error", "float time", "time", "float bytes", "bytes", "weights"),
        *("by", "remark"),
    ]
    without = render(runs.earlier(run()))
    heads = re.findall(
        r"<th scope=\"col\"[^>]*>([^<]*)</th>", without.split('id="op-table"')[1]
    )
    assert heads == ["op", "type", "asked", "runs", "weights", "by", "remark"], (
        "a column that no op has anything in is left out"
    )


def test_what_carries_codes_is_not_left_in_float() -> None:
    found = run()
    carrier = found.ops[5].name
    assert carrier not in [
        name for _, _, named, _ in found.left_in_float for name in named
    ]
    row = render(found).split('<tr id="op-5"')[1].split("</tr>")[0]
    assert "carries codes" in row
    assert ">float<" not in row


def test_transforms_have_a_place_only_where_there_are_any() -> None:
    assert "transforms" not in Page(render(run())).text
    found = run()
    moved = replace(
        found.trials[0],
        recipe=replace(
            found.trials[0].recipe, transforms=(PartChoice(kind="smoothquant"),)
        ),
    )
    text = Page(render(replace(found, trials=[moved, *found.trials[1:]]))).text
    assert "transforms smoothquant instead of none" in text


def test_a_trial_tells_its_recipe_and_what_differs_from_the_best() -> None:
    found = run()
    drawn = render(found)
    row = drawn.split('<tbody id="trial-6"')[1].split("</tbody>")[0]
    assert "7 w8a8 per channel" in Page(f"<table><tbody{row}</tbody></table>").text
    assert "2 ops differ" in row
    last = found.ops[-1].name
    assert last in Page(f"<table><tbody{row}</tbody></table>").text
    table = island(drawn)
    trials = table["trials"]
    assert isinstance(trials, dict)
    _, best = trials["3"]
    _, other = trials["6"]
    assert len(best) == len(other) == len(found.ops), "a letter an op"
    assert sum(a != b for a, b in zip(best, other, strict=True)) == 2


def test_settings_tell_the_defaults_too_and_where_it_was_measured() -> None:
    text = Page(render(run())).text
    assert "1 settings at their defaults" in text
    assert "seed0" in text
    assert "strategyauto" in text
    assert "load, before0.4" in text
    assert "timing, batch size128" in text
    assert "memory8.59 GB" in text
    assert "governor" not in text, "what is not known has no row"


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(run(trials=0), id="no trials"),
        pytest.param(runs.earlier(run()), id="an earlier version"),
        pytest.param(replace(run(), best=None, goal_met=True), id="float kept"),
        pytest.param(
            replace(run(), goal_met=False, reason="none reached the goal"), id="missed"
        ),
        pytest.param(
            replace(
                run(),
                best=None,
                trials=run().trials[-1:],
                ops=(),
                bound=None,
                final={},
                front=(),
            ),
            id="all failed",
        ),
    ],
)
def test_every_kind_of_end_has_a_page(found: ReportData) -> None:
    page = Page(render(found))
    assert found.verdict[1:] in page.text
    assert {r[1:] for r in page.references} <= set(page.ids)


def test_figures_that_are_no_numbers_are_told_and_break_nothing() -> None:
    found = run()
    first, second, *rest = found.trials
    endless = Measurement(float("inf"), float("inf"), float("inf"), "ms", float("inf"))
    odd = [
        replace(first, objectives={**first.objectives, "latency": endless}),
        replace(second, metrics={"accuracy": float("nan")}, passed=False),
        *rest,
    ]
    name = found.ops[0].name
    worst = Layer(float("nan"), "hessian", None, float("inf"), None, None, 0)
    layers = {**found.layers, name: worst}
    page = Page(render(replace(found, trials=odd, layers=layers)))
    assert "nan" in page.text
    assert "inf" in page.text
    places = [a["x"] for tag, a in page.tags if tag == "use" and a.get("x")]
    assert places
    assert not any("nan" in str(place) or "inf" in str(place) for place in places)


@pytest.mark.parametrize("objectives", [1, 5])
def test_any_number_of_objectives_and_metrics(objectives: int) -> None:
    found = run()
    own = {
        f"cost {i}": Measurement(1.0 + i, 1.0 + i, 1.0 + i, "")
        for i in range(objectives)
    }
    scores = {"accuracy": 0.99, "f1": 0.5, "loss": 3.0}
    trials = [replace(t, objectives=own, metrics=scores) for t in found.trials[:-1]]
    base = replace(found.baseline, objectives=own, metrics=scores)
    text = Page(
        render(replace(found, trials=trials, baseline=base, best=trials[2]))
    ).text
    assert all(name in text for name in (*own, *scores))


def test_charts_have_a_name_and_a_description_and_each_mark_tells_its_trial() -> None:
    found = run()
    drawn = render(found)
    page = Page(drawn)
    charts = [a for tag, a in page.tags if tag == "svg" and a.get("role")]
    assert [chart["role"] for chart in charts] == ["group"] * 3
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    for trial in found.trials[:-1]:
        marks = re.findall(
            rf'<a class="mark" href="#trial-{trial.number}"><title>([^<]*)</title>',
            drawn,
        )
        assert len(marks) == 2, "in both charts of trials"
        assert all(f"{trial.metrics['accuracy']:.5g}" in told for told in marks)
        assert all("latency" in told and "size" in told for told in marks)


def test_results_of_the_first_release_have_a_page() -> None:
    facts = read_manifest(OLD / "onnx")
    text = Page(render(report_data(facts))).text
    assert "Settings that differ from a default" in text


def test_a_run_says_why_an_op_had_no_choice_and_what_settings_it_took(
    tmp_path: Path,
) -> None:
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
    found = report_data(result.facts())
    assert [(op.name, op.is_float) for op in found.ops] == [
        (f"layer.{i}", i == 1) for i in range(4)
    ]
    assert [(kind, why, names) for kind, why, names, _ in found.left_in_float] == [
        (
            "linear",
            "kept in float by the rules, or by an op that decides with it",
            ("layer.1",),
        )
    ]
    assert found.bound == pytest.approx(result.baseline.metrics["score"] * 0.95)
    # A saved result tells the same.
    assert report_data(read_manifest(result.save(tmp_path / "out"))).ops == found.ops
    assert found.confirmed == result.best.metrics, (
        "deterministic scores are the same after a reload"
    )
    assert [row[0] for row in found.scores] == [
        "score",
        "score, saved and loaded again",
    ]
    assert found.settings["accuracy.tolerance"] == "0.05"
    assert found.settings["accuracy.mode"] == "relative"
    assert {"accuracy.mode", "seed", "confirm"} <= found.defaults
    assert not {"accuracy.tolerance", "max_trials"} & found.defaults
    page = result.report(tmp_path / "page.html")
    assert "layer.1" in Page(page.read_text()).text
    (tmp_path / "ordinary").touch()
    assert page.stat().st_mode == (tmp_path / "ordinary").stat().st_mode, (
        "others may read it where they may read other files"
    )
    assert not list(tmp_path.glob(".page*")), "nothing half-written is left"


def test_the_same_run_gives_the_same_page() -> None:
    assert render(run()) == render(run())


def test_a_template_gets_what_a_recipe_has_and_not_a_scheme_of_that_name() -> None:
    jinja2 = pytest.importorskip("jinja2")
    trials = [replace(t, recipe=replace(t.recipe, transforms=())) for t in run().trials]
    template = "{{ trials | selectattr('recipe.transforms') | list | length }}"
    shown = drawn._environment(jinja2).from_string(template).render(trials=trials)
    assert shown == "0"


def test_the_page_stays_small_for_many_ops_and_trials() -> None:
    few = len(render(run(ops=8, trials=19)))
    many = len(render(run(ops=229, trials=19)))
    assert many < 300_000
    assert few < 120_000


def test_every_point_of_the_front_has_a_row_and_what_loses_something_a_mark() -> None:
    found = run()
    page = Page(render(found))
    rows = [name for name in page.ids if re.fullmatch(r"front-\d+", name)]
    assert len(rows) == len(found.front)
    plot = size_against_loss(found)
    assert plot is not None
    drawn_rows = [int(mark.target.rpartition("-")[2]) for mark in plot.marks]
    lossy = [row for row, point in enumerate(found.front) if point.loss]
    assert drawn_rows == lossy, "neither the float model nor what is not known"
    labels = {look.label for look in plot.looks}
    assert {"least believed loss, not measured", "one width for every op"} <= labels
    by_size = sorted(plot.marks, key=lambda mark: mark.x)
    assert [mark.target for mark in by_size] == [mark.target for mark in plot.marks]
    joined = [point for point in found.front if point.unbeaten and point.loss]
    assert len(plot.lines) == len(joined) - 1
    assert all(y1 <= y2 for _, y1, _, y2 in plot.lines), "less loss lies lower"
    assert "uniform 2 bits" in page.text
    assert "no believed loss and no mark" in page.text
    uniform = next(m for m in plot.marks if "uniform 2 bits" in m.told)
    assert "size 180 kB (0.225 of float)" in uniform.told


def test_a_record_without_a_front_has_no_section_of_it() -> None:
    page = Page(render(runs.earlier(run())))
    assert "front" not in page.ids
    assert "#front" not in page.references
