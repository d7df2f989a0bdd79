"""``budgets.bits_of`` says which weights the average of bits is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier

import octavo
from octavo.core.errors import ConfigError
from tests import tiny

WEIGHTS = {"first": 64 * 48, "second": 48 * 32, "last": 32 * 10}


@pytest.fixture(scope="module")
def net() -> MLPClassifier:
    x, y = tiny.digits()
    return MLPClassifier((48, 32), max_iter=60, random_state=0).fit(x, y)


def tune(net: MLPClassifier, storage: Path, **settings: Any) -> octavo.Result:
    x, y = tiny.digits()

    def accuracy(model: Any) -> float:
        return float((np.asarray(model(x)).reshape(len(x), -1).argmax(1) == y).mean())

    settings = {
        "strategy": "auto",
        "tolerance": 0.9,
        "max_trials": 8,
        "minimise": "size",
        "confirm": False,
        **settings,
    }
    return octavo.autotune(net, accuracy, [x[:64]], storage=storage, **settings)


def bits(result: octavo.Result, *, everything: bool) -> float:
    """The average over weights, from the ledger and the layers' known sizes, float as 32 bits."""
    names = [op.name for op in result.views["numpy"].ops if op.parameters]
    sizes = dict(zip(names, WEIGHTS.values(), strict=True))
    counted = names if everything else names[1:]  # the first is kept
    widths = {
        n: result.ledger[n].applied.weight_bits if n in result.ledger else 32
        for n in counted
    }
    return sum(sizes[n] * widths[n] for n in counted) / sum(sizes[n] for n in counted)


def first_layer(net: MLPClassifier, storage: Path) -> str:
    found = tune(net, storage, max_trials=1)
    return next(op.name for op in found.views["numpy"].ops if op.parameters)


@pytest.mark.parametrize("strategy", ["auto", "budget"])
def test_kept_layers_count_where_all_are_asked_for(
    net: MLPClassifier, tmp_path: Path, strategy: str
) -> None:
    rules = [{"ops": [first_layer(net, tmp_path / "probe.db")], "keep": "float"}]
    # 3,072 of 4,928 weights stay at 32 bits, 19.95 a weight in any case; 22 leave 5.4 to the
    # others.
    every = tune(
        net,
        tmp_path / "all.db",
        rules=rules,
        budgets={"bits": 22, "bits_of": "all"},
        strategy=strategy,
    )
    assert every.goal_met, every.reason
    assert bits(every, everything=True) <= 22
    assert "over all ops" in every.goal
    some = tune(
        net, tmp_path / "some.db", rules=rules, budgets={"bits": 5.4}, strategy=strategy
    )
    assert bits(some, everything=False) <= 5.4
    assert "over the ops that may be quantized" in some.goal


def test_what_cannot_be_kept_says_what_can(net: MLPClassifier, tmp_path: Path) -> None:
    rules = [{"ops": [first_layer(net, tmp_path / "probe.db")], "keep": "float"}]
    with pytest.raises(ConfigError, match=r"at least 2[01]\."):
        tune(
            net,
            tmp_path / "h.db",
            rules=rules,
            budgets={"all_bits": 4.5},
            strategy="budget",
        )


def test_spellings() -> None:
    def read(**budgets: object) -> dict[str, float]:
        return dict(octavo.TuningConfig.read(None, budgets=budgets).budgets)

    assert read(bits=4.5, bits_of="all") == {"all_bits": 4.5} == read(all_bits=4.5)
    assert read(bits=4.5, bits_of="tunable") == {"bits": 4.5} == read(bits=4.5)
    with pytest.raises(ConfigError, match="which weights bits counts"):
        read(bits=4.5, bits_of="some")
    with pytest.raises(ConfigError, match="there is no bits"):
        read(size=0.5, bits_of="all")
    assert read(bits=3, bits_of="codes") == {"code_bits": 3} == read(code_bits=3)
    both = read(bits=3, bits_of=["codes", "all"])
    assert both == {"all_code_bits": 3} == read(all_bits=3, bits_of="codes")
    with pytest.raises(ConfigError, match="one of each"):
        read(bits=3, bits_of=["codes", "file"])
    with pytest.raises(ConfigError, match="bits of a weight"):
        read(all_bits=64)
