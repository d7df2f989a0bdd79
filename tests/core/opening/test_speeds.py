"""What is slower than float is said when it is asked for, and not tried where speed is what is
asked for first."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, save
from typer.testing import CliRunner

import octavo
from octavo.cli import app
from octavo.core.contract.adapter import Batch, Candidate, Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.opening.speeds import CLEARLY, measured, remark, timed, worth_trying
from octavo.core.values.capability import Capability, Offer
from octavo.core.values.scheme import OpScheme, QuantSpec
from tests import tiny
from tests.helpers import as_opened

RANDOM = np.random.default_rng(0)
HOST = PluginHost(third_party=False)


def convolution() -> ModelProto:
    held = [
        numpy_helper.from_array(RANDOM.normal(size=s).astype(np.float32), n)
        for n, s in (("w", (16, 8, 3, 3)), ("v", (16, 16, 3, 3)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["h", "v"], ["y"], "second", pads=[1, 1, 1, 1]),
    ]
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 12, 12])
        for n, c in (("x", 8), ("y", 16))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], held)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )


X = RANDOM.normal(size=(4, 8, 12, 12)).astype(np.float32)


def is_slow(scheme: OpScheme) -> bool:
    return (
        scheme.mode == "dynamic"
        and scheme.weight is not None
        and scheme.weight.dtype == "int8"
    )


def test_a_dynamic_scheme_of_convolutions_says_that_it_is_slow() -> None:
    quantized = octavo.quantize_model(convolution(), "int8-dynamic", [(X,)])
    (told,) = (note for note in quantized.notes if "slower than float" in note)
    assert "conv" in told
    assert "ConvInteger" in told


def test_the_capabilities_say_so_too() -> None:
    done = CliRunner().invoke(app, ["capabilities", "--backend", "onnx", "--json"])
    (answer,) = json.loads(done.stdout)
    rows = answer["offers"]["conv"]
    slow = [row["scheme"] for row in rows if row["slower"]]
    assert slow
    assert all(scheme.startswith("dynamic w:int8") for scheme in slow)
    assert not any(row["slower"] for row in answer["offers"]["linear"])


@pytest.mark.parametrize("strategy", ["auto", "basic", "random"])
def test_no_trial_is_spent_on_it_where_latency_is_asked_for_first(
    strategy: str, tmp_path: Path
) -> None:
    result = tune(tmp_path, strategy, minimise=["latency", "size"])
    assert not any(is_slow(s) for t in result.trials for s in t.recipe.schemes.values())
    assert any("not tried" in note and "ConvInteger" in note for note in result.notes)


def test_what_a_rule_asks_for_is_tried_and_told(tmp_path: Path) -> None:
    rules = [{"types": "conv", "mode": "dynamic", "weight": {"dtype": "int8"}}]
    result = tune(tmp_path, "basic", minimise=["latency"], rules=rules)
    assert result.trials
    assert all(is_slow(s) for t in result.trials for s in t.recipe.schemes.values())


def tune(folder: Path, strategy: str, **settings: Any) -> octavo.Result:
    save(convolution(), folder / "c.onnx")
    return octavo.autotune(
        folder / "c.onnx",
        lambda model: 1.0,
        [X],
        strategy=strategy,
        max_trials=4,
        storage=folder / "h.db",
        metric="score",
        higher_is_better=True,
        seed=1,
        **settings,
    )


def opened_tiny(slower: str) -> Opened:
    opened = as_opened(tiny.host().adapters()["tiny"].build().open(tiny.chain(), None))
    capability = opened.capability
    offers = {
        kind: tuple(
            replace(o, slower=slower if o.scheme.mode == "static" else "") for o in own
        )
        for kind, own in capability.offers.items()
    }
    return replace(opened, capability=replace(capability, offers=offers))


def test_a_space_loses_what_the_table_calls_slower_and_nothing_else() -> None:
    opened = opened_tiny("a table says so")
    whole = build_space(opened)
    assert any(s.mode == "static" for u in whole.units for s in u.choices)
    left, notes = worth_trying(opened, whole, ())
    assert [u.name for u in left.units] == [u.name for u in whole.units]
    assert all(
        u.choices == tuple(s for s in v.choices if s.mode != "static")
        for u, v in zip(left.units, whole.units, strict=True)
    )
    assert notes
    assert all("a table says so" in note for note in notes)
    rules = (Rule(mode="static"),)
    asked = build_space(opened, rules)
    assert worth_trying(opened, asked, rules) == (asked, ())
    assert worth_trying(opened_tiny(""), whole, ()) == (whole, ())


def test_the_table_knows_schemes_whatever_their_algorithm() -> None:
    static = OpScheme(
        mode="static",
        weight=QuantSpec(dtype="int8"),
        input=QuantSpec(dtype="uint8", symmetric=False),
    )
    known = Capability("toy", offers={"linear": (Offer(static, slower="why"),)})
    assert known.slower("linear", static.variant(algorithm={"kind": "gptq"})) == "why"
    assert known.slower("conv", static) == ""


class Sleeps(Candidate):
    """Takes a given time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @property
    def native(self) -> Any:
        return self.run

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        time.sleep(self.seconds)
        return ()

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def test_the_clock_tells_a_third_of_the_speed() -> None:
    first, second = timed(Sleeps(0.006), Sleeps(0.002), ())
    assert 0.1 < first < 0.7
    assert 0.1 < second < 0.7
    assert "0.33 of float's speed" in remark(0.33)
    assert remark(CLEARLY) == ""
    assert remark(None) == ""


@pytest.mark.parametrize("backend", ["numpy", "onnx", "torch"])
def test_every_backend_has_samples(backend: str) -> None:
    card = HOST.adapters()[backend]
    offers = card.build().capability().offers
    for kind in ("linear", "conv"):
        scheme = next(
            o.scheme
            for o in offers[kind]
            if (o.realization == "kernel" and o.scheme.mode == "weight_only")
            or kind == "conv"
        )
        speed = measured(card, kind, scheme)
        assert speed is not None
        assert 0.001 < speed < 1000
        assert measured(card, kind, scheme) == speed
    assert card.build().sample("no such type") is None
