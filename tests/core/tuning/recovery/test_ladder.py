"""Which candidates are repaired, in which order, and where each step begins."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.core.contract.strategy import WAIT
from octavo.core.tuning.recovery.ladder import Ladder, LadderPlan, closest
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace
from octavo.core.values.trial import Trial
from octavo.core.values.units import Unit

R, D, Q = (PartChoice(kind=kind) for kind in ("reconstruction", "distillation", "qat"))


def scheme(bits: int) -> OpScheme:
    return OpScheme(mode="weight_only", weight=QuantSpec(dtype=f"int{bits}"))


class Backend:
    """A backend of one op, which lacks some recoveries and keeps the models of the others."""

    def __init__(self, *lacks: str) -> None:
        units = (Unit("a", "linear", ("a",), (scheme(2), FLOAT), parameters=10),)
        self.space = TuningSpace("torch", units)
        self.kept: set[str] = set()
        self.realizer = SimpleNamespace(recovering=self)
        self._lacks = lacks

    def lacks(self, kind: str) -> str:
        return f"no {kind} here" if kind in self._lacks else ""

    def forget(self, recipe: Recipe) -> None:
        self.kept.discard(recipe.digest)


def trial(number: int, margin: float, bits: int = 2, **facts: Any) -> Trial:
    algorithm = PartChoice.model_validate({"kind": "rtn", "number": number})
    own = scheme(bits).model_copy(update={"algorithm": algorithm})
    recipe = Recipe({"a": own}, (), "torch")
    ledger = {"a": Applied(own, own)}
    return Trial(number, recipe, margin=margin, ledger=ledger, **facts)


def bench(*trials: Trial, budgets: Any = None, backend: Backend | None = None) -> Any:
    return SimpleNamespace(
        trials=trials, budgets=budgets or {}, backends={"torch": backend or Backend()}
    )


def climb(ladder: Ladder, margins: dict[tuple[str, ...], float]) -> list[Any]:
    """Answer each recipe with the margin of its steps; return (candidate, steps)."""
    asked = []
    while isinstance(recipe := ladder.ask(), Recipe):
        steps = tuple(step.kind for step in recipe.recovery)
        number = dict(recipe["a"].algorithm.options)["number"]
        asked.append((number, steps))
        margin = margins.get(steps, -9.0)
        made = Trial(100 + len(asked), recipe, margin=margin, passed=margin >= 0)
        ladder.tell(made)
    return asked


def test_the_closest_come_first_and_the_rest_not_at_all() -> None:
    failed = trial(5, 0.0, state="failed")
    known = bench(
        trial(1, -3.0), trial(2, -1.0), trial(3, -2.0), trial(4, -2.0), failed
    )
    assert [t.number for t in closest(known)] == [2, 3, 4, 1]


def test_what_overran_a_budget_is_no_candidate() -> None:
    wide = trial(1, -0.1, 8, state="rejected")
    over = trial(2, -0.2, over={"size": 1.2})
    stopped = trial(3, -1.0, state="rejected")
    kept = trial(4, -5.0)
    # Bits are known of a trial that was stopped; its size is not, so it comes after the others.
    assert [t.number for t in closest(bench(wide, over, stopped, kept))] == [1, 3, 4]
    bits = bench(wide, over, stopped, kept, budgets={"code_bits": 2})
    assert [t.number for t in closest(bits)] == [3, 4]
    size = bench(wide, over, stopped, kept, budgets={"code_bits": 2, "size": 0.5})
    assert [t.number for t in closest(size)] == [4, 3]


def test_recoveries_are_no_candidates_themselves() -> None:
    first = trial(1, -2.0)
    learned = replace(first, number=2, recipe=first.recipe.recovered(D), margin=-1.0)
    assert [t.number for t in closest(bench(first, learned))] == [1]


def test_step_by_step_on_each_candidate_as_far_as_the_last_step() -> None:
    ladder = Ladder(bench(trial(1, -3.0), trial(2, -2.0)), LadderPlan((R, D, Q), 2))
    assert ladder.most == 6
    assert climb(ladder, {}) == [
        (2, ("reconstruction",)),
        (1, ("reconstruction",)),
        (2, ("distillation",)),
        (1, ("distillation",)),
        (2, ("qat",)),
        (1, ("qat",)),
    ]
    assert ladder.explain() == "6 recoveries did not reach the goal"


def test_the_order_is_the_one_that_was_asked_for() -> None:
    ladder = Ladder(bench(trial(1, -3.0)), LadderPlan((Q, D), 1))
    assert climb(ladder, {}) == [(1, ("qat",)), (1, ("distillation",))]


def test_a_step_goes_on_from_the_one_before_where_that_came_closer() -> None:
    ladder = Ladder(bench(trial(1, -3.0)), LadderPlan((R, D, Q), 2))
    asked = climb(ladder, {("reconstruction",): -1.0})
    # Training starts from the float weights, whatever was learned of the rounding.
    both = ("reconstruction", "distillation")
    assert asked == [(1, ("reconstruction",)), (1, both), (1, ("qat",))]
    worse = Ladder(bench(trial(1, -3.0)), LadderPlan((R, D), 2))
    assert climb(worse, {("reconstruction",): -3.5})[1] == (1, ("distillation",))


def test_a_step_that_passes_is_tried_on_all_and_is_the_last() -> None:
    ladder = Ladder(bench(trial(1, -3.0), trial(2, -2.0)), LadderPlan((R, D, Q), 2))
    asked = climb(ladder, {("distillation",): 0.5})
    assert [steps for _, steps in asked] == [
        *2 * [("reconstruction",)],
        *2 * [("distillation",)],
    ]
    assert ladder.explain() == "reached the goal by recovery: trials 103, 104"


def test_one_that_was_refused_after_all_lets_it_go_on() -> None:
    known = bench(trial(1, -3.0))
    ladder = Ladder(known, LadderPlan((D, Q), 1))
    first = ladder.ask()
    assert isinstance(first, Recipe)
    refused = Trial(2, first, margin=-0.01, refused="when it was confirmed")
    ladder.tell(refused)
    again = ladder.ask()
    assert isinstance(again, Recipe)
    assert [step.kind for step in again.recovery] == ["qat"]


def test_asked_again_before_it_was_told_it_waits_at_the_end_of_a_step() -> None:
    ladder = Ladder(bench(trial(1, -3.0), trial(2, -2.0)), LadderPlan((D, Q), 2))
    first, second = ladder.ask(), ladder.ask()
    assert ladder.ask() is WAIT
    for number, recipe in enumerate((first, second), 3):
        assert isinstance(recipe, Recipe)
        ladder.tell(Trial(number, recipe, margin=-1.0))
    assert isinstance(ladder.ask(), Recipe)


@pytest.mark.parametrize("lacking", [("reconstruction",), ("reconstruction", "qat")])
def test_what_a_backend_lacks_is_said_and_left_out(lacking: tuple[str, ...]) -> None:
    known = bench(trial(1, -3.0), backend=Backend(*lacking))
    ladder = Ladder(known, LadderPlan((R, D, Q), 2))
    assert [steps[0] for _, steps in climb(ladder, {})] == [
        kind
        for kind in ("reconstruction", "distillation", "qat")
        if kind not in lacking
    ]
    told = [f"no recovery by {kind}: no {kind} here" for kind in lacking]
    assert list(ladder.unsuited) == told


def test_a_step_is_tried_on_the_closest_that_it_can_learn_for() -> None:
    static = trial(1, -1.0)
    own = OpScheme(
        mode="static", weight=scheme(2).weight, input=QuantSpec(dtype="int8")
    )
    static = replace(static, recipe=Recipe({"a": own}, (), "torch"))
    floats = trial(2, -2.0)
    fp8 = OpScheme(mode="weight_only", weight=QuantSpec(dtype="fp8_e4m3fn"))
    floats = replace(floats, recipe=Recipe({"a": fp8}, (), "torch"))
    elsewhere = trial(3, -3.0)
    recipe = Recipe(elsewhere.recipe.schemes, (), "onnx")
    elsewhere = replace(elsewhere, recipe=recipe)
    known = bench(static, floats, elsewhere, trial(4, -4.0), trial(5, -5.0))
    known.backends["onnx"] = Backend("distillation", "qat")
    ladder = Ladder(known, LadderPlan((D, Q), 1))
    learned = [recipe for recipe in (ladder.ask(),) if isinstance(recipe, Recipe)]
    assert learned[0].unrecovered == known.trials[3].recipe
    ladder.tell(Trial(6, learned[0], margin=-1.0))
    trained = ladder.ask()
    assert isinstance(trained, Recipe)
    assert trained.unrecovered == static.recipe
    assert list(ladder.unsuited) == [
        "no recovery by distillation: no distillation here",
        "no recovery by qat: no qat here",
    ]
    alone = Ladder(bench(static), LadderPlan((D,), 1))
    assert alone.ask() is None
    assert list(alone.unsuited) == [
        "no recovery by distillation for trial 1: distillation learns stored integer weights, "
        "and there are none"
    ]


def test_only_models_that_are_still_needed_are_kept() -> None:
    backend = Backend()
    ladder = Ladder(bench(trial(1, -3.0), backend=backend), LadderPlan((R, D, Q), 2))
    margins = [-2.0, -2.5, -1.0]
    left = []
    for number, margin in enumerate(margins, 2):
        recipe = ladder.ask()
        assert isinstance(recipe, Recipe)
        backend.kept.add(recipe.digest)
        ladder.tell(Trial(number, recipe, margin=margin))
        left.append(len(backend.kept))
    # Reconstruction is where distillation began; what came closest is what a miss hands back.
    assert left == [1, 1, 2]
