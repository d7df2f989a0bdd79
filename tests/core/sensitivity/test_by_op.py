"""The sensitivity of each op of a recipe: what was asked, or a cheap one; all of one kind."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from octavo.adapters.numpy import NumpyConfig
from octavo.adapters.numpy.adapter import NumpyAdapter
from octavo.adapters.numpy.graph import Builder
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.sensitivity.by_op import SAMPLES, UnitLoss, losses_of
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.values.recipe import Recipe
from octavo.core.values.space import Unit
from tests.helpers import as_opened

OPS = ("first", "second", "third")


class Asked(NamedTuple):
    service: SensitivityService
    units: dict[str, Unit]

    def recipe(self, *quantized: str) -> Recipe:
        """Return a recipe in which some ops take their first choice."""
        choice = {name: self.units[name].choices[0] for name in quantized}
        return self.service.realizer.space.recipe(choice)


@pytest.fixture
def asked() -> Asked:
    rng = np.random.default_rng(0)
    b = Builder()
    x = b.input("x", (None, 8))
    for name in OPS:
        weight = rng.normal(size=(8, 8)).astype(np.float32)
        x = b.Gemm(x, weight, np.zeros(8, np.float32), name=name)
    batches = [rng.normal(size=(16, 8)).astype(np.float32)]
    session = NumpyAdapter(NumpyConfig()).open(b.graph(x), batches[0])
    opened = as_opened(session)
    space = build_space(opened)
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    realizer.calibrate(batches)
    service = SensitivityService(opened, realizer, batches)
    return Asked(service, {unit.name: unit for unit in space.tunable})


def by_unit(losses: list[UnitLoss]) -> dict[str, UnitLoss]:
    return {found.unit.name: found for found in losses}


def test_an_op_in_float_has_the_least_loss_that_was_asked_for(asked: Asked) -> None:
    first = asked.units["first"]
    mild, harsh = first.choices[0], first.choices[-2]
    second = asked.units["second"].choices[0]
    pairs = [("first", harsh), ("first", mild), ("second", second)]
    losses = asked.service("output_distance", pairs)
    found, late = losses_of(asked.service, asked.recipe("second"), {}, lambda: True)
    assert late == 0
    # What runs the model for each op is not computed afterwards: the third has none.
    assert set(by_unit(found)) == {"first", "second"}
    assert by_unit(found)["first"].loss == min(losses[:2])
    assert by_unit(found)["second"].loss == losses[2]
    assert {one.kind for one in found} == {"output_distance"}


def test_without_a_question_a_cheap_one_is_answered(asked: Asked) -> None:
    recipe = asked.recipe("first", "second")
    tried = {"third": asked.units["third"].choices[0]}
    found, _ = losses_of(asked.service, recipe, tried, lambda: True)
    assert [one.unit.name for one in found] == list(OPS)
    assert {one.kind for one in found} == {"weight_error"}
    assert all(one.loss > 0 for one in found)
    # The search's own scores are left alone: those are of more samples than these.
    assert not asked.service.known("first", recipe["first"])
    assert len(asked.service.batches[0]) > SAMPLES


def test_what_there_is_no_time_for_is_counted(asked: Asked) -> None:
    found, late = losses_of(asked.service, asked.recipe(*OPS), {}, lambda: False)
    assert found == []
    assert late == len(OPS)


def test_what_a_counterpart_was_asked_is_known(asked: Asked) -> None:
    recipe = asked.recipe("first")
    asked.service.lend("gradient", "first", recipe["first"], (), 0.25)
    found, _ = losses_of(asked.service, recipe, {}, lambda: True)
    assert [(one.unit.name, one.kind, one.loss) for one in found] == [
        ("first", "gradient", 0.25)
    ]
