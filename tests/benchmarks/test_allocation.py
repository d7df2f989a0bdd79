from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks._allocation.arithmetic import (
    Layer,
    average,
    least,
    log_ratio,
    uniform,
)
from benchmarks._allocation.models import divergence, next_tokens
from benchmarks._allocation.peers import auto_round_overhead
from benchmarks._allocation.store import Store
from benchmarks._allocation.tables import against
from octavo.core.errors import ConfigError

WIDTHS = {"2": 2.0, "3": 3.0, "4": 4.0, "8": 8.0}
LAYERS = [Layer("a", 100, WIDTHS), Layer("b", 300, WIDTHS), Layer("c", 100, WIDTHS)]


def test_bits_are_a_mean_over_weights_and_not_over_layers() -> None:
    assert average(LAYERS, {"a": "8", "b": "2", "c": "2"}) == pytest.approx(3.2)


def test_early_layers_of_a_uniform_allocation_are_wider_as_long_as_the_budget_lasts() -> (
    None
):
    # 2.3 leaves 150 bits over two everywhere: a takes 100 of them, b does not fit, nor does c.
    assert uniform(LAYERS, 2.3) == {"a": "3", "b": "2", "c": "2"}
    assert uniform(LAYERS, 2.4) == {"a": "3", "b": "2", "c": "3"}
    assert uniform(LAYERS, 3.0) == dict.fromkeys("abc", "3")
    # The next wider choice of four bits has eight.
    assert uniform(LAYERS, 5.0) == {"a": "8", "b": "4", "c": "4"}
    assert uniform(LAYERS, 9.0) == dict.fromkeys("abc", "8")
    assert uniform(LAYERS, 1.9) is None


def test_the_least_sum_of_losses_is_that_of_all_combinations() -> None:
    random = np.random.default_rng(0)
    losses = {
        x.name: dict(zip(WIDTHS, np.sort(random.random(4))[::-1].tolist(), strict=True))
        for x in LAYERS
    }
    for budget in (2.0, 2.5, 3.3, 5.0):
        found = least(LAYERS, losses, budget)
        every = itertools.product(WIDTHS, repeat=3)
        fitting = [
            sum(losses[n][label] for n, label in zip("abc", labels, strict=True))
            for labels in every
            if average(LAYERS, dict(zip("abc", labels, strict=True))) <= budget
        ]
        assert sum(losses[n][found[n]] for n in "abc") == pytest.approx(min(fitting))
        assert average(LAYERS, found) <= budget + 1e-9
    with pytest.raises(ConfigError):
        least(LAYERS, losses, 1.5)


def test_rows_are_compared_by_their_own_ratios() -> None:
    # One hard row must not drown the others: twice the loss in each is twice the loss.
    theirs = [0.001, 1.0, 0.1]
    more, error = log_ratio([2 * d for d in theirs], theirs)
    assert more == pytest.approx(100.0)
    assert error == pytest.approx(0.0, abs=1e-9)
    more, error = log_ratio([0.002, 1.0, 0.05], theirs)
    assert more == pytest.approx(0.0, abs=1e-9)
    assert error == pytest.approx(100 * np.log(2) / np.sqrt(3))


def test_auto_round_counts_scales_and_zero_points_of_its_files() -> None:
    # compute_layer_bits of auto-round 0.16.1: 16 + bits for each 32 weights.
    assert 2 + auto_round_overhead("2") == 2.5625
    assert 3 + auto_round_overhead("3") == 3.59375


def test_divergence_is_the_mean_over_the_tokens_of_each_row() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=(2, 2, 3, 5))
    expected = []
    for row in range(2):
        of_tokens = []
        for token in range(3):
            p = np.exp(a[row, token]) / np.exp(a[row, token]).sum()
            q = np.exp(b[row, token]) / np.exp(b[row, token]).sum()
            of_tokens.append((p * np.log(p / q)).sum())
        expected.append(np.mean(of_tokens))
    assert divergence((b,), (a,)) == pytest.approx(expected)


def test_the_surprise_of_the_next_token_is_asked_of_the_one_before() -> None:
    ids = np.array([[1, 0, 2]])
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1.0, 1.0, 1.0]]]))
    total, count = next_tokens((ids,), (logits,))
    assert count == 2
    assert total == pytest.approx(-np.log(0.5) - np.log(0.8))


def test_results_go_on_and_those_of_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    store = Store(path, {"rows": 2})
    store.cell("code", 2.5, "uniform")["used"] = 2.25
    store.save()
    assert Store(path, {"rows": 2}).cell("code", 2.5, "uniform") == {"used": 2.25}
    with pytest.raises(ConfigError, match="another --out"):
        Store(path, {"rows": 4})


def test_the_bar_is_held_against_the_best_peer() -> None:
    store = Store(None, {})
    for method, distances in (
        ("octavo", [0.103, 0.206]),
        ("good", [0.1, 0.2]),
        ("poor", [0.4, 0.8]),
    ):
        cell = store.cell("code", 3.0, method)
        cell["judged"] = {"rtn": {"distances": distances, "quality": None}}
    lines = against(
        store, "code", "rtn", "octavo", ["octavo", "good", "poor"], ["good", "poor"]
    )
    assert [line.split() for line in lines[1:]] == [
        ["good", "+3.0+-0.0"],
        ["poor", "-74.2+-0.0"],
        ["best", "peer", "+3.0", "MISSED"],
    ]
