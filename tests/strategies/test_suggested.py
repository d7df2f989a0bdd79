"""Transforms that nobody named: auto compares them where outliers make quantized activations fail,
and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.values.scheme import PartChoice
from tests.helpers import as_opened

torch = pytest.importorskip("torch")
nn = torch.nn

HOST = PluginHost(third_party=False)
SMOOTH, EQUAL = PartChoice(kind="smoothquant"), PartChoice(kind="equalization")
SUGGESTED = {"linear": SMOOTH, "conv": EQUAL}


class Outliers(nn.Module):
    """Normalised features of which two are a hundred times as large as the others, and count for as
    much as they do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)
        with torch.no_grad():
            self.norm.weight[:2] *= 100.0
            self.head.weight[:, :2] /= 100.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


def tune(folder: Path, tolerance: float, **settings: Any) -> octavo.Result:
    torch.manual_seed(0)
    model, x = (
        Outliers().eval(),
        torch.randn(512, 32, generator=torch.Generator().manual_seed(1)),
    )
    truth = model(x).argmax(1)
    return octavo.autotune(
        model,
        lambda candidate: float((candidate(x).argmax(1) == truth).float().mean()),
        [(x[:64],), (x[64:128],)],
        config={
            "rules": [
                {
                    "mode": "static",
                    "weight": {"dtype": "int8", "granularity": "channel"},
                }
            ]
        },
        tolerance=tolerance,
        minimise="size",
        host=HOST,
        storage=folder / "history.db",
        **settings,
    )


def test_smoothing_is_tried_where_it_helps(tmp_path: Path) -> None:
    result = tune(tmp_path, 0.03)
    assert [t.recipe.transforms for t in result.trials] == [(), (SMOOTH,)]
    # Of 128 weights the saved file does not get smaller: what passes is no gain, and the float
    # model is kept.
    assert [t.passed for t in result.trials] == [False, True]


def test_where_the_plain_recipe_passes_nothing_else_is_evaluated(
    tmp_path: Path,
) -> None:
    assert [t.recipe.transforms for t in tune(tmp_path, 0.9).trials] == [()]


def test_an_empty_list_means_none(tmp_path: Path) -> None:
    result = tune(tmp_path, 0.03, transforms=[])
    assert all(t.recipe.transforms == () for t in result.trials)


def test_they_are_offered_where_there_is_something_to_gain() -> None:
    session = (
        HOST.adapters()["torch"]
        .build()
        .open(Outliers().eval(), (np.zeros((2, 32), np.float32),))
    )
    opened = as_opened(session)
    static = build_space(opened, [Rule(mode="static")], suggested=SUGGESTED)
    stored = build_space(opened, [Rule(mode="weight_only")], suggested=SUGGESTED)
    named = build_space(opened, [Rule(mode="static")], transforms=[EQUAL])
    assert static.transforms == ((), (SMOOTH,))
    assert stored.transforms == ((),)
    assert named.transforms == ((), (EQUAL,))
