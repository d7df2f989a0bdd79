"""The whole front of a run: its sizes and losses are those of the scores that the search paid
for."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.report import render, report_data
from octavo.core.results.result import read_manifest
from tests import tiny

RULE = {
    "types": "linear",
    "mode": "weight_only",
    "weight": {"dtype": ["int2", "int4", "int8"], "granularity": "group:32"},
}
torch = pytest.importorskip("torch")


def network() -> Any:
    torch.manual_seed(0)
    widths = (64, 96, 64, 32, 10)
    layers: list[Any] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1]).eval()


def batches() -> list[Any]:
    return [torch.from_numpy(x) for x in tiny.calibration()]


def accuracy(model: Any) -> float:
    x = torch.from_numpy(tiny.digits()[0][1200:])
    with torch.no_grad():
        same = model(x).argmax(1) == network()(x).argmax(1)
    return float(same.float().mean())


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> octavo.Result:
    return octavo.autotune(
        network(),
        accuracy,
        batches(),
        strategy={"kind": "budget", "sensitivities": ["output_distance"]},
        rules=[RULE],
        budgets={"bits": 6},
        minimise="size",
        tolerance=0.5,
        max_trials=3,
        storage=tmp_path_factory.mktemp("front") / "h.db",
    )


def test_it_holds_trials_believed_points_and_the_usual_widths(
    result: octavo.Result,
) -> None:
    front = result.front
    assert [p.size for p in front] == sorted(p.size for p in front)
    trials = {p.trial: p for p in front if p.kind == "trial"}
    assert set(trials) == {0, *(t.number for t in result.trials)}
    best = trials[result.best.number]
    assert best.recipe == result.best.recipe
    assert best.size == result.best.objectives["size"].value
    assert best.scores == result.best.metrics
    assert trials[0].loss == 0
    assert {p.name for p in front.uniform} == {
        "uniform 2 bits",
        "uniform 4 bits",
        "uniform 8 bits",
    }
    assert any(p.kind == "believed" for p in front)
    unlike = {p.recipe.digest for p in front if p.kind != "uniform"}
    assert len(unlike) == sum(p.kind != "uniform" for p in front)


def test_the_loss_of_a_point_is_the_sum_over_its_ops(result: octavo.Result) -> None:
    best = next(p for p in result.front if p.trial == result.best.number)
    quantized = [result.layers[op] for op in result.best.recipe]
    assert {layer.kind for layer in quantized} == {"output_distance"}
    losses = [layer.sensitivity or 0.0 for layer in quantized]
    assert best.loss == pytest.approx(sum(losses))
    assert best.sensitivity == "output_distance"


def test_less_loss_is_bought_with_bytes(result: octavo.Result) -> None:
    losses = [p.loss or 0.0 for p in result.front.unbeaten]
    assert all(a > b for a, b in itertools.pairwise(losses))
    two, eight = result.front.uniform[0], result.front.uniform[-1]
    assert two.loss is not None
    assert eight.loss is not None
    assert two.loss > 10 * eight.loss


def test_any_point_becomes_a_model_of_its_size(
    result: octavo.Result, tmp_path: Path
) -> None:
    for place in (0, len(result.front) // 2):
        point = result.front[place]
        made = octavo.quantize_model(network(), point.recipe, calibration=batches())
        made.save(tmp_path / str(place))
        files = (tmp_path / str(place) / "model").rglob("*")
        held = sum(file.stat().st_size for file in files if file.is_file())
        # Its weights to the byte; what tells of them is a few hundred bytes more or less.
        assert point.size == pytest.approx(held, abs=500)


def test_the_record_the_page_and_the_table_hold_it(
    result: octavo.Result, tmp_path: Path
) -> None:
    result.save(tmp_path / "saved")
    data = report_data(read_manifest(tmp_path / "saved"))
    assert tuple(data.front) == tuple(result.front)
    page = render(data)
    assert page.count("result.front[") == len(result.front)
    assert "least believed loss, not measured" in page
    assert "uniform 4 bits" in page
    told = repr(result.front)
    assert "uniform 4 bits" in told
    assert f"{len(result.front)} points" in told
    assert len(result.front.to_frame()) == len(result.front)
    assert "<table" in result.front._repr_html_()


def test_without_sensitivities_it_holds_what_was_measured(tmp_path: Path) -> None:
    result = octavo.autotune(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        host=tiny.host(),
        strategy="basic",
        minimise="size",
        max_trials=2,
        storage=tmp_path / "h.db",
    )
    assert {p.kind for p in result.front} == {"trial"}
    assert {p.trial for p in result.front} == {0, *(t.number for t in result.trials)}
    assert all(p.loss is None for p in result.front)
    # A table of dashes would repeat the trials.
    assert "Size against loss" not in render(report_data(result.facts()))


def test_modes_that_were_asked_in_two_ways_stand_on_one_front(tmp_path: Path) -> None:
    # Rounded weights are told by gradients, rounded inputs by distances: both in one unit.
    mixed = octavo.autotune(
        network(),
        accuracy,
        batches(),
        strategy="budget",
        rules=[{"types": "linear", "mode": ["weight_only", "dynamic"]}],
        budgets={"bits": 5},
        minimise="size",
        tolerance=0.5,
        max_trials=2,
        refine=[],
        storage=tmp_path / "h.db",
    )
    points = [p for p in mixed.front if p.kind != "uniform"]
    assert all(p.loss is not None for p in points)
    modes = {s.mode for p in points for s in p.recipe.schemes.values()}
    assert modes >= {"weight_only", "dynamic"}
