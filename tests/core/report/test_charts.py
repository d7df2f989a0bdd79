"""Charts of the page: axes that fit, the best on the front, the largest ops in a fixed order,
colours that can be told from the paper."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files

import pytest

from octavo.core.report import ReportData
from octavo.core.report.page.axes import axis_of
from octavo.core.report.page.bars import MOST, op_bars
from octavo.core.report.page.search import search
from octavo.core.report.page.trade_off import trade_off
from octavo.core.values.trial import Trial

from .runs import earlier, run


def scored(
    found: ReportData, scores: dict[int, float], passing: set[int]
) -> ReportData:
    def change(trial: Trial) -> Trial:
        score = scores.get(trial.number)
        if score is None:
            return trial
        passed = trial.number in passing
        return replace(trial, metrics={"accuracy": score}, passed=passed)

    trials = [change(trial) for trial in found.trials]
    best = next(trial for trial in trials if trial.number == 3)
    return replace(found, trials=trials, best=best)


def test_a_far_goal_and_far_misses_do_not_press_the_marks_into_a_line() -> None:
    scores = {i: 0.9950 + 0.0001 * i for i in range(1, 8)} | {8: 0.1}
    found = scored(replace(run(), bound=0.9), scores, set(range(1, 8)))
    plot = trade_off(found, "latency")
    assert plot is not None
    heights = [mark.y for mark in plot.marks if mark.target != "trial-8"]
    assert max(heights) - min(heights) > 70, "they take most of the chart"
    assert plot.levels == []
    assert "The goal, 0.9, lies below this axis." in plot.notes
    assert any("One trial lies beyond this axis" in note for note in plot.notes)
    assert all(0 <= mark.x <= 100 and 0 <= mark.y <= 100 for mark in plot.marks)


def test_a_near_goal_is_drawn() -> None:
    plot = trade_off(run(), "latency")
    assert plot is not None
    assert [level.label for level in plot.levels] == ["goal"]
    assert not any("goal" in note for note in plot.notes)


def test_the_best_lies_on_the_front_and_who_is_ahead_of_it_is_said() -> None:
    found = run()
    plot = trade_off(found, "latency")
    assert plot is not None
    assert plot.best is not None
    assert plot.best.target == "trial-3"
    ends = {(x1, y1) for x1, y1, _, _ in plot.lines}
    ends |= {(x2, y2) for _, _, x2, y2 in plot.lines}
    assert (plot.best.x, plot.best.y) in ends
    ahead = [note for note in plot.notes if "ahead of the best" in note]
    assert len(ahead) == 1
    assert ahead[0].startswith("#1")


@pytest.mark.parametrize("higher", [True, False])
def test_the_front_follows_the_direction_of_the_metric(higher: bool) -> None:
    scores = {i: (0.9 + 0.01 * i if higher else 0.9 - 0.01 * i) for i in range(1, 9)}
    found = scored(run(), scores, set(range(1, 9)))
    found = replace(found, higher_is_better=higher, bound=None)
    plot = trade_off(found, "latency")
    assert plot is not None
    assert len(plot.lines) == 7, "each dearer trial scores better: all are on the front"


def test_axes_of_equal_and_of_wide_values() -> None:
    equal = axis_of("x", [0.5, 0.5])
    assert equal.holds(0.5)
    assert 40 < equal.at(0.5) < 60
    wide = axis_of("x", [0.01, 10.0], may_be_log=True)
    assert wide.is_log
    assert next(label for _, label in wide.ticks) == "0.01"
    assert len({label for _, label in wide.ticks}) == len(wide.ticks)
    narrow = axis_of("x", [0.988871, 0.988879])
    labels = [label for _, label in narrow.ticks]
    assert len(set(labels)) == len(labels) > 1


def test_the_largest_ops_come_first_and_equal_ones_in_the_models_order() -> None:
    found = run(ops=40, hostile=False)
    sizes, times, losses = op_bars(found)
    assert len(sizes.bars) == MOST
    assert sizes.part == f"The {MOST} largest of 40; the table of ops has all."
    assert [bar.row for bar in sizes.bars] == list(range(39, 39 - MOST, -1))
    rows = [bar.row for bar in times.bars]
    assert rows[:4] == [8, 17, 26, 35], "of equal times the first in the model"
    assert max(bar.float_share or 0 for bar in times.bars) == 100
    assert not losses.has_float


def test_ops_that_decide_together_count_once() -> None:
    found = run(ops=6, hostile=False)
    together = {
        name: replace(layer, unit="qkv", sensitivity=0.5)
        for name, layer in list(found.layers.items())[:3]
    }
    found = replace(found, layers={**found.layers, **together})
    losses = op_bars(found)[-1]
    assert [bar.row for bar in losses.bars if bar.figure == "0.5"] == [0]


def test_an_earlier_result_shows_weights_by_their_width() -> None:
    (only,) = op_bars(earlier(run()))
    assert only.title == "Bytes of the weights"


def test_the_search_needs_two_trials() -> None:
    assert search(run()) is not None
    assert search(replace(run(), trials=run().trials[:1])) is None


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_marks_and_texts_stand_out_from_the_paper_in_both_dresses() -> None:
    style = (files("octavo.core.report.page") / "templates" / "page.css").read_text()
    dresses = [
        dict(re.findall(r"--([\w-]+): (#\w+)", block))
        for block in re.findall(r":root[^{]*\{(.*?)\}", style, re.DOTALL)
    ]
    assert len(dresses) == 3
    assert dresses[1] == dresses[2], "the system's dark dress is the reader's"
    for dress in dresses:
        for name, colour in dress.items():
            if name.startswith("series") or name in ("float", "good", "bad", "ink"):
                assert contrast(colour, dress["paper"]) >= 3, name
        for text, ground in (
            ("faint", "paper"),
            ("faint", "panel"),
            ("accent", "wash"),
        ):
            assert contrast(dress[text], dress[ground]) >= 4.5, (text, ground)
