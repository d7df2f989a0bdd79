"""Recipes, schemes, views and spaces as values."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.contract.adapter import Opened
from octavo.core.errors import ConfigError, ModelError, SchemeError
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space, build_spaces
from octavo.core.scoring.choice import choose, pareto
from octavo.core.values.capability import Capability, Offer
from octavo.core.values.graph import Group, ModelView, Op, Weight
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.trial import Measurement, Trial

W8, X8 = (
    QuantSpec(dtype="int8", granularity="channel"),
    QuantSpec(dtype="uint8", symmetric=False),
)
STATIC, DYNAMIC = (
    OpScheme(mode="static", weight=W8, input=X8),
    OpScheme(mode="dynamic", weight=W8, input=X8),
)
INT4 = OpScheme(
    mode="weight_only", weight=QuantSpec(dtype="int4", granularity="group:32")
)

specs = st.builds(
    QuantSpec,
    dtype=st.sampled_from(["int8", "uint8", "int4", "nf4"]),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel", "group:32", "block:2x16"]),
)
choices = st.one_of(
    st.just(PartChoice(kind="rtn")),
    st.builds(
        lambda d, a: PartChoice.model_validate(
            {"kind": "gptq", "damping": d, "act_order": a}
        ),
        st.floats(0, 1),
        st.booleans(),
    ),
)
schemes = st.one_of(
    st.just(FLOAT),
    st.builds(OpScheme, mode=st.just("weight_only"), weight=specs, algorithm=choices),
    st.builds(
        OpScheme,
        mode=st.sampled_from(["static", "dynamic"]),
        weight=specs,
        input=specs,
        algorithm=choices,
    ),
)
steps = st.builds(
    lambda kind, count: PartChoice.model_validate({"kind": kind, "iterations": count}),
    st.sampled_from(["reconstruction", "distillation"]),
    st.integers(0, 9),
)
recipes = st.builds(
    Recipe,
    st.dictionaries(st.text(min_size=1), schemes, max_size=5),
    st.tuples(choices) | st.just(()),
    st.sampled_from(["torch", "onnx"]),
    st.tuples(steps, st.just(PartChoice(kind="qat"))) | st.tuples(steps) | st.just(()),
)


@given(recipes)
def test_a_recipe_survives_json_and_pickle(recipe: Recipe) -> None:
    import json

    for again in (
        Recipe.from_json(json.loads(json.dumps(recipe.to_json()))),
        pickle.loads(pickle.dumps(recipe)),
    ):
        assert again == recipe
        assert hash(again) == hash(recipe)
        assert dict(again.schemes) == dict(recipe.schemes)


@given(recipes, recipes)
def test_digests_tell_recipes_apart(a: Recipe, b: Recipe) -> None:
    same = (
        dict(a.schemes) == dict(b.schemes)
        and a.transforms == b.transforms
        and a.backend == b.backend
        and a.recovery == b.recovery
    )
    assert (a.digest == b.digest) is same


def test_a_recipe_without_recovery_is_written_as_before_there_was_any() -> None:
    plain = Recipe({"a": INT4}, (PartChoice(kind="smoothquant"),), "torch")
    assert list(plain.to_json()) == ["backend", "transforms", "schemes", "ops"]
    assert plain.digest == "0867284fb56615b6"
    learned = plain.recovered(PartChoice(kind="distillation"), PartChoice(kind="qat"))
    assert [step.kind for step in learned.recovery] == ["distillation", "qat"]
    assert learned.to_json()["recovery"] == ["distillation", "qat"]
    assert learned.unrecovered == plain != learned
    assert "then distillation, then qat" in repr(learned)


def test_float_and_not_named_are_one_recipe() -> None:
    assert Recipe({"a": FLOAT, "b": INT4}) == Recipe({"b": INT4})
    assert Recipe({"b": INT4})["a"].is_float


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"schemes": {}, "ops": {"a": "x"}},
        {"schemes": {"x": {"mode": "odd"}}, "ops": {}},
        {"schemes": 3, "ops": {}},
    ],
)
def test_what_is_no_recipe_is_refused(raw: Any) -> None:
    with pytest.raises(ConfigError, match="not a recipe"):
        Recipe.from_json(raw)


@pytest.mark.parametrize(
    "bad",
    [
        {"mode": "float", "weight": W8},
        {"mode": "weight_only", "weight": W8, "input": X8},
        {"mode": "static", "weight": W8},
        {
            "mode": "static",
            "weight": W8,
            "input": QuantSpec(dtype="int8", granularity="token"),
        },
        {"mode": "statc"},
        {"mode": "dynamic"},
    ],
)
def test_schemes_that_contradict_themselves_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        OpScheme(**bad)


@pytest.mark.parametrize(
    "granularity", ["channels", "group", "group:0", "group:x", "block:2"]
)
def test_unknown_granularities_are_refused(granularity: str) -> None:
    with pytest.raises(ConfigError):
        QuantSpec(dtype="int8", granularity=granularity)


def view() -> ModelView:
    def linear(i: int, name: str, source: str) -> Op:
        return Op(
            name,
            "linear",
            (source,),
            (f"v{i}",),
            Weight(f"{name}.weight", (8, 4)),
            macs=32,
        )

    ops = (
        linear(0, "layer.0.q", "x"),
        linear(1, "layer.0.k", "x"),
        linear(2, "layer.1.q", "v0"),
        linear(3, "layer.1.k", "v0"),
        Op("sum", "add", ("v2", "v3"), ("y",)),
        linear(5, "head", "y"),
    )
    return ModelView(ops, (Group("qk0", "scheme", ("layer.0.q", "layer.0.k")),))


def toy(**features: Any) -> Opened:
    narrow = Offer(
        INT4, refuses=lambda op: "" if op.name == "head" else "only the head"
    )
    capability = Capability(
        "toy",
        offers={
            "linear": (
                Offer(STATIC),
                Offer(DYNAMIC),
                narrow,
                Offer(OpScheme(mode="weight_only", weight=W8), "simulated"),
            )
        },
        **features,
    )
    return Opened("toy", None, view(), capability)  # type: ignore[arg-type]


def test_a_space_is_capability_times_model_times_rules() -> None:
    space = build_space(toy())
    assert [u.name for u in space.units] == [
        "layer.0.q",
        "layer.1.q",
        "layer.1.k",
        "sum",
        "head",
    ]
    assert space.by_name["layer.0.q"].ops == ("layer.0.q", "layer.0.k")
    assert space.by_name["layer.0.q"].choices == (STATIC, DYNAMIC, FLOAT)
    assert space.by_name["head"].choices == (STATIC, DYNAMIC, INT4, FLOAT)
    assert space.by_name["sum"].choices == (FLOAT,)
    assert space.by_name["layer.1.k"].block == "layer.1"
    assert space.size == 3**3 * 4
    assert len(build_space(toy(), simulated=True).by_name["head"].choices) == 5
    recipe = space.recipe({"layer.0.q": STATIC, "head": INT4})
    assert set(recipe) == {"layer.0.q", "layer.0.k", "head"}
    assert space.contains(recipe)
    assert not space.contains(Recipe({"layer.0.q": STATIC}, (), "toy"))
    assert not space.contains(Recipe({"sum": STATIC}, (), "toy"))
    assert space.digest != build_space(toy(), simulated=True).digest
    assert space.digest == build_space(toy()).digest


def test_the_later_rule_wins() -> None:
    rules = [
        Rule(types=["linear"], keep="float"),
        Rule(ops=["layer.1.*"], mode="dynamic"),
        Rule(
            ops="layer.1.k",
            calibrator=["minmax", {"kind": "percentile", "percentile": 99.9}],
            mode=["static"],
        ),
    ]
    space = build_space(toy(), rules)
    assert space.by_name["head"].choices == (FLOAT,)
    assert space.by_name["layer.1.q"].choices == (DYNAMIC, FLOAT)
    assert [str(s.calibrator) for s in space.by_name["layer.1.k"].choices[:-1]] == [
        "minmax",
        "percentile(percentile=99.9)",
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"ops": ["layr.*"]}, "layr.*"),
        ({"types": ["conv"]}, "'conv'"),
        ({"backends": ["torch"]}, "'torch'"),
        ({"ops": ["sum"], "types": ["linear"]}, "matches no op"),
        ({"types": ["linear"], "weight": "int2"}, "nothing that toy can carry out"),
    ],
)
def test_rules_that_do_nothing_are_errors(rule: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_spaces([toy()], [Rule(**rule)])


def test_transforms_need_rescale() -> None:
    smooth = PartChoice(kind="smoothquant")
    assert build_space(toy(), transforms=[smooth]).transforms == ((),)
    assert "rescale" in build_space(toy(), transforms=[smooth]).notes[-1]
    assert build_space(
        toy(features=frozenset({"rescale"})), transforms=[smooth]
    ).transforms == (
        (),
        (smooth,),
    )


def test_capability_answers_per_op() -> None:
    capability, ops = toy().capability, view().by_name
    assert capability.realization(ops["head"], INT4) == "kernel"
    assert (
        capability.realization(ops["head"], STATIC.variant(calibrator="percentile"))
        == "kernel"
    )
    with pytest.raises(SchemeError, match="only the head"):
        capability.realization(ops["layer.0.q"], INT4)
    with pytest.raises(SchemeError, match="It can: float"):
        capability.realization(ops["sum"], STATIC)


def test_views_check_themselves() -> None:
    with pytest.raises(ModelError, match="unique"):
        ModelView((Op("a", "add"), Op("a", "add")))
    with pytest.raises(ModelError, match="group 'g'"):
        ModelView((Op("a", "add"),), (Group("g", "scheme", ("b",)),))
    assert ("layer.0.q", "layer.1.k") in view().edges
    assert view().parameters == 5 * 32


def trial(
    number: int, margin: float, latency: tuple[float, float, float], size: float
) -> Trial:
    measured = {
        "latency": Measurement(*latency, "ms"),
        "size": Measurement(size, size, size, "bytes"),
    }
    return Trial(
        number,
        Recipe({f"op{number}": INT4}),
        margin=margin,
        passed=margin >= 0,
        objectives=measured,
    )


def test_the_winner_is_the_first_objective_and_ties_go_to_the_next() -> None:
    fast = trial(1, 0.1, (1.0, 0.9, 1.1), 50)
    as_fast_and_smaller = trial(2, 0.1, (1.05, 0.95, 1.15), 40)
    slow = trial(3, 0.9, (2.0, 1.9, 2.1), 10)
    failing = trial(4, -0.1, (0.1, 0.1, 0.1), 1)
    assert (
        choose([fast, as_fast_and_smaller, slow, failing], ("latency", "size"))
        == as_fast_and_smaller
    )
    assert choose([fast, as_fast_and_smaller, slow], ("size", "latency")) == slow
    assert choose([failing], ("latency",)) is None


def test_the_front_holds_what_nothing_beats() -> None:
    a, b, c = (
        trial(1, 0.5, (1, 1, 1), 10),
        trial(2, 0.9, (2, 2, 2), 10),
        trial(3, 0.4, (2, 2, 2), 11),
    )
    assert pareto([a, b, c], ("latency", "size")) == (a, b)


def test_the_int8_presets_reach_embeddings() -> None:
    table = OpScheme(mode="weight_only", weight=W8)
    ops = (
        Op("words", "embedding", ("ids",), ("v",), Weight("words.weight", (9, 4))),
        Op("head", "linear", ("v",), ("y",), Weight("head.weight", (8, 4))),
    )
    capability = Capability(
        "toy",
        offers={
            "embedding": (Offer(table),),
            "linear": (Offer(DYNAMIC), Offer(STATIC), Offer(table)),
        },
    )
    model = Opened("toy", None, ModelView(ops), capability)  # type: ignore[arg-type]
    for name, expected in (
        ("int8-static", STATIC),
        ("int8-dynamic", DYNAMIC),
        ("int8-weight-only", table),
    ):
        recipe = preset_recipe(name, build_space(model), model)
        assert dict(recipe.schemes) == {"words": table, "head": expected}
    with pytest.raises(SchemeError, match="'int4-weight-only'"):
        preset_recipe("int4-weight-only", build_space(model), model)


def test_an_op_counts_all_its_weights() -> None:
    first, second, third = Weight("i", (8, 4)), Weight("h", (8, 2)), Weight("o", (3, 2))
    cell, tied = (
        Op("cell", "lstm", weight=first, further=(second, third)),
        Op("other", "linear", weight=first),
    )
    assert cell.weights == (first, second, third)
    assert cell.parameters == 32 + 16 + 6
    assert ModelView((cell, tied)).parameters == 54
    assert (
        ModelView((cell,)).digest
        != ModelView((Op("cell", "lstm", weight=first),)).digest
    )


def test_a_drift_of_the_machine_decides_nothing() -> None:
    def trial(number: int, milliseconds: float, ratio: float, margin: float) -> Trial:
        spread = Measurement(
            milliseconds, 0.99 * milliseconds, 1.01 * milliseconds, "ms", ratio
        )
        return Trial(
            number,
            Recipe(backend="numpy"),
            "complete",
            {"score": 0.9},
            True,
            margin,
            {"latency": spread},
        )

    # The second was measured while everything took half as long again; it is the faster one by far.
    slow, fast = trial(1, 10.0, 0.5, 1.0), trial(2, 12.0, 0.4, 0.5)
    assert choose([slow, fast], ("latency",)) is fast
    assert pareto([slow, fast, trial(3, 11.0, 0.6, 0.1)], ("latency",)) == (slow, fast)


def test_double_quantization_shows_and_keeps_the_digests_of_recipes() -> None:
    plain = QuantSpec(dtype="nf4", granularity="group:64")
    double = plain.model_copy(update={"scale_dtype": "uint8"})
    assert str(plain) == "nf4/group:64"
    assert str(double) == "nf4/group:64/scale:uint8"
    digests = [
        Recipe({"a": OpScheme(mode="weight_only", weight=weight)}, (), "torch").digest
        for weight in (plain, double)
    ]
    # As the versions made them that told neither in a spec's text.
    assert digests == ["dba58b2685e0ee91", "ab1a1b6c5cbb99cf"]
