"""An op that its neighbours' schemes leave in float costs no trial of its own, under any name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import octavo
from octavo.core.contract.strategy import Strategy
from octavo.core.errors import PluginError
from octavo.core.tuning.settling import Settled, Settling
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from octavo.core.values.trial import Trial
from tests import tiny

WHY = "the layer before it runs in float"
"""A layer runs in integers only where the one before it does."""

applied: list[Recipe] = []


class Demanding(tiny.TinySession):
    def outcome(self, recipe: Recipe) -> Mapping[str, str]:
        found = {}
        for place in range(1, len(self.chain.weights)):
            name, before = f"layer.{place}", f"layer.{place - 1}"
            if name in recipe.schemes and before not in recipe.schemes:
                found[name] = WHY
        return found

    def apply(self, recipe: Recipe, parameters: Mapping[str, Any]) -> Any:
        assert not self.outcome(recipe)
        assert set(parameters) == set(recipe)
        applied.append(recipe)
        return super().apply(recipe, parameters)


@pytest.fixture(autouse=True)
def demanding(monkeypatch: pytest.MonkeyPatch) -> None:
    applied.clear()
    monkeypatch.setattr(
        tiny.TinyAdapter, "open", lambda self, source, _=None: Demanding(source)
    )


RULES = [{"mode": "static", "weight": {"granularity": "channel"}}]
"""One scheme beside float: of the 16 recipes of four layers, 5 run as they stand."""


def prepared(folder: Path, **settings: Any) -> octavo.Run:
    settings = {
        "strategy": "exhaustive",
        "minimise": "size",
        "rules": RULES,
        **settings,
    }
    return octavo.prepare(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        storage=folder / "h.db",
        tolerance=0.5,
        host=tiny.host(),
        **settings,
    )


def is_a_beginning(recipe: Recipe) -> bool:
    """True if a recipe quantizes the first so many layers, as the backend demands."""
    return list(recipe) == [f"layer.{place}" for place in range(len(recipe))]


def test_each_model_is_tried_once_whatever_it_is_called(tmp_path: Path) -> None:
    with prepared(tmp_path) as run:
        run.search()
        result = run.finish()
    recipes = [trial.recipe for trial in result.trials]
    assert all(map(is_a_beginning, recipes))
    assert sorted(map(len, recipes)) == [0, 1, 2, 3, 4]
    assert all(trial.state == "complete" for trial in result.trials)
    (said,) = [remark for remark in result.remarks if WHY in remark]
    assert "first met: layer." in said


def test_two_runs_try_the_same(tmp_path: Path) -> None:
    tried = []
    for name in ("a", "b"):
        with prepared(tmp_path / name, strategy="random", max_trials=6) as run:
            run.search()
            tried.append([t.recipe.digest for t in run.finish().trials])
    assert tried[0] == tried[1]
    assert len(set(tried[0])) == len(tried[0])


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with prepared(tmp_path, max_trials=2) as run:
        run.search()
        before = [t.recipe.digest for t in run.finish().trials]
    with prepared(tmp_path, max_trials=50) as run:
        run.search()
        after = [t.recipe.digest for t in run.finish().trials]
    assert after[:2] == before
    assert len(after) == len(set(after)) == 5


def test_the_caller_of_a_loop_gets_what_is_carried_out(tmp_path: Path) -> None:
    with prepared(tmp_path) as run:
        recipe = run.ask()
        assert isinstance(recipe, Recipe)
        scheme = next(iter(recipe.schemes.values()))
        alone = Recipe({"layer.0": scheme, "layer.3": scheme}, backend="tiny")
        first = Recipe({"layer.0": scheme}, backend="tiny")
        trial = run.evaluate(alone)
        assert trial.recipe == first
        run.tell(trial)
        assert run.evaluate(first).number == trial.number


def test_what_is_quantized_without_a_search_has_the_reason_in_its_ledger() -> None:
    scheme = OpScheme(
        mode="static",
        weight=QuantSpec(dtype="int8", granularity="channel"),
        input=QuantSpec(dtype="uint8", symmetric=False),
    )
    asked = Recipe({"layer.0": scheme, "layer.2": scheme, "layer.3": scheme})
    found = octavo.quantize_model(
        tiny.chain(), asked, tiny.calibration(), host=tiny.host()
    )
    assert list(applied[0]) == ["layer.0"]
    assert found.ledger["layer.0"].honoured
    for name in ("layer.2", "layer.3"):
        line = found.ledger[name]
        assert line.requested == scheme
        assert line.applied.is_float
        assert line.reason == WHY


@pytest.mark.parametrize("told", [{"no.such": WHY}, {"layer.0": ""}, {"layer.0": 3}, 5])
def test_an_answer_that_makes_no_sense_is_refused(
    told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Demanding, "outcome", lambda self, recipe: told)
    with pytest.raises(PluginError, match="outcome"):
        octavo.quantize_model(
            tiny.chain(), "int8-static", tiny.calibration(), host=tiny.host()
        )


def test_ops_that_decide_together_go_together() -> None:
    scheme = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8"))
    reasons: dict[str, str] = {}
    asked: list[Recipe] = []

    def outcome(recipe: Recipe) -> dict[str, str]:
        asked.append(recipe)
        return {op: why for op, why in reasons.items() if op in recipe}

    ops = ("a", "b", "c")
    session = SimpleNamespace(outcome=outcome)
    view = SimpleNamespace(by_name=dict.fromkeys(ops))
    opened: Any = SimpleNamespace(name="mine", session=session, view=view)
    units = [Unit("a", "linear", ("a", "b"), (scheme, FLOAT))]
    units.append(Unit("c", "linear", ("c",), (scheme, FLOAT)))
    space = TuningSpace("mine", tuple(units))
    whole = space.recipe(dict.fromkeys(("a", "c"), scheme))
    said: list[str] = []

    reasons.update(a="too near")
    # One of a pair alone: the recipe stays a point of the space, and the ledger tells.
    assert Settling(opened, space, said.append)(whole) == whole
    assert not said
    reasons.update(b="too near")
    settle = Settling(opened, space, said.append)
    assert settle(whole) == space.recipe({"c": scheme})
    assert space.contains(settle(whole))
    assert len(said) == 1
    assert "first met: a, b): too near" in said[0]
    before = len(asked)
    assert settle(whole) == settle(settle(whole))
    assert len(asked) == before


def test_a_strategy_is_given_what_settles_its_recipes(tmp_path: Path) -> None:
    with prepared(tmp_path) as run:
        joined: Any = run._plan.strategy()
        problem = joined._strategies["tiny"].problem
        space = problem.space
        last = space.recipe({"layer.3": space.by_name["layer.3"].choices[0]})
        assert not len(problem.settled(last))
        assert problem.settled(space.recipe(space.first())) == space.recipe(
            space.first()
        )


class Twice(Strategy):
    """Asks for two recipes that come to one, and for one that comes to nothing."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self.left = list(recipes)
        self.heard: list[Trial] = []

    def ask(self) -> Recipe | None:
        return self.left.pop(0) if self.left else None

    def tell(self, trial: Trial) -> None:
        self.heard.append(trial)

    def narrowed(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        return [t for t in trials if "b" in t.recipe]


def test_a_strategy_hears_of_each_recipe_by_the_name_that_it_asked_for() -> None:
    scheme = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8"))
    a = Recipe({"a": scheme})
    ab, ac, c = (
        a.without(()),
        Recipe({"a": scheme, "c": scheme}),
        Recipe({"c": scheme}),
    )
    ab = Recipe({"a": scheme, "b": scheme})
    asks = Twice([ab, ac, c])
    asks.config, asks.problem = None, None  # type: ignore[assignment]
    settled = Settled(
        asks, lambda recipe: recipe.without({"b", "c"}), Trial(0, Recipe())
    )

    assert settled.ask() == a
    settled.tell(Trial(1, a))
    assert settled.ask() is None
    assert [(t.number, t.recipe, t.reused) for t in asks.heard] == [
        (1, ab, None),
        (1, ac, 1),
        (0, c, 0),
    ]
    trials = [Trial(1, a), Trial(2, c)]
    assert [t.number for t in settled.narrowed(trials)] == [1]
