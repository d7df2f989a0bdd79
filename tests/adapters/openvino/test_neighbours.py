"""What an op becomes does not hang on what its neighbours are asked for.

Where that ceases to be so, ``Session.outcome`` has to say it before a trial is spent.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino as ov
import openvino.opset13 as ops

import octavo
from octavo.adapters.openvino import OpenVinoConfig
from octavo.adapters.openvino.adapter import OpenVinoAdapter
from octavo.plugin import OpScheme, Recipe, one_op_parameters
from tests.adapters.onnx import models
from tests.adapters.openvino.test_conformance import as_openvino, witness

RECIPES = 12


def convolved(value: Any, name: str, outputs: int = 4) -> Any:
    inputs = value.get_output_partial_shape(0)[1].get_length()
    seed = np.frombuffer(name.encode(), np.uint8)
    numbers = np.random.default_rng(seed).normal(size=(outputs, inputs, 3, 3))
    weight = ops.constant(numbers.astype(np.float32) / 6)
    ones = [1, 1]
    return called(ops.convolution(value, weight, ones, ones, ones, ones), name)


def called(node: Any, name: str) -> Any:
    node.set_friendly_name(name)
    return node


def image() -> Any:
    x = ops.parameter([1, 4, 8, 8], np.float32, name="x")
    x.output(0).set_names({"x"})
    return x


def branches() -> ov.Model:
    """Sums, a concat and a pool, between convolutions and at the end."""
    x = image()
    first = convolved(x, "first")
    inner = called(ops.add(first, convolved(first, "second")), "inner")
    joined = called(ops.concat([inner, first], 1), "joined")
    none, two = [0, 0], [2, 2]
    pooled = called(ops.avg_pool(joined, two, none, none, two, True), "pooled")
    last = convolved(pooled, "last")
    total = called(ops.add(last, convolved(last, "tail")), "total")
    return ov.Model([total.output(0)], [x], "")


def transformer() -> ov.Model:
    return as_openvino(models.transformer_block())


def kernels(session: Any) -> dict[str, list[OpScheme]]:
    """Return the schemes that each op is promised a kernel for."""
    offers = session.capability().offers
    found = {}
    for op in session.describe().ops:
        offered = [] if op.out_of_reach else offers.get(op.type, ())
        schemes = [offer.scheme for offer in offered if offer.realization == "kernel"]
        taken = [
            scheme for scheme in schemes if scheme in session.capability().for_op(op)
        ]
        if taken:
            found[op.name] = taken
    return found


@pytest.mark.parametrize("model", [branches, transformer])
def test_no_neighbour_takes_a_kernel_away(model: Any) -> None:
    session = OpenVinoAdapter(OpenVinoConfig(threads=1)).open(model())
    promised, by_name = kernels(session), session.describe().by_name
    assert len(promised) >= 8
    draw = random.Random(0)
    for _ in range(RECIPES):
        chosen = {n: draw.choice(s) for n, s in promised.items() if draw.random() < 0.6}
        recipe = Recipe(chosen, backend="openvino")
        given = {
            name: one_op_parameters(by_name[name], scheme, session.tensor)
            for name, scheme in chosen.items()
        }
        candidate = session.carry_out(recipe, given)
        told = session.outcome(recipe)
        for name in chosen.keys() - told.keys():
            assert candidate.ledger[name].realization == "kernel"
            assert not witness(candidate, name)


def test_a_search_spends_no_trial_on_a_sum_that_stays_float() -> None:
    x = image()
    first = convolved(x, "first")
    fused = called(ops.add(first, convolved(first, "second")), "fused")
    lone = called(ops.add(fused, ops.sigmoid(fused)), "lone")
    source = ov.Model([convolved(lone, "last").output(0)], [x], "")
    draw = np.random.default_rng(0)
    batches = [draw.normal(size=(1, 4, 8, 8)).astype(np.float32) for _ in range(4)]

    def score(model: Any) -> float:
        return -float(np.mean([np.abs(model(batch)).mean() for batch in batches]))

    result = octavo.autotune(
        source,
        score,
        batches,
        backends=["openvino"],
        max_trials=4,
        minimise="size",
    )
    tried = {name for trial in result.trials for name in trial.recipe}
    assert "lone" not in tried
    assert {"first", "second", "fused", "last"} <= tried
