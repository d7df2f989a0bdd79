"""Ops that share one weight decide together, and what they decide is carried by all of them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from octavo.core.contract.adapter import Opened, Session
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.values.capability import Capability, Offer
from octavo.core.values.graph import Group, ModelView, Op, Weight
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec

W8, X8 = (
    QuantSpec(dtype="int8", granularity="channel"),
    QuantSpec(dtype="uint8", symmetric=False),
)
STATIC, STORED8 = (
    OpScheme(mode="static", weight=W8, input=X8),
    OpScheme(mode="weight_only", weight=W8),
)
WHOLE = OpScheme(mode="static", weight=QuantSpec(dtype="int8"), input=X8)
INT4 = OpScheme(
    mode="weight_only", weight=QuantSpec(dtype="int4", granularity="group:32")
)


def toy(axis: int = 0, table: tuple[OpScheme, ...] = (STORED8, INT4)) -> Opened:
    shape = (64, 64)
    embed = Op(
        "embed", "embedding", (), ("e",), Weight("w", shape, shared_with=("head",))
    )
    middle = Op("middle", "linear", ("e",), ("m",), Weight("v", shape))
    head = Op(
        "head",
        "linear",
        ("m",),
        ("y",),
        Weight("w", shape, channel_axis=axis, shared_with=("embed",)),
        macs=4096,
    )
    view = ModelView(
        (embed, middle, head),
        (Group("tied:w", "scheme", ("embed", "head")),),
        outputs=("y",),
    )
    offers = {
        "linear": (Offer(STATIC), Offer(WHOLE), Offer(STORED8), Offer(INT4)),
        "embedding": tuple(map(Offer, table)),
    }
    return Opened("any", cast(Session, None), view, Capability("any", offers=offers))


def test_a_tied_embedding_and_head_are_one_unit_on_the_same_codes() -> None:
    space = build_space(toy())
    assert [(u.name, u.ops, u.lookups) for u in space.units] == [
        ("middle", ("middle",), ()),
        ("head", ("head", "embed"), ("embed",)),
    ]
    unit = space.by_name["head"]
    # Not int8 with one scale for the tensor, which the table is not offered in.
    assert (unit.type, unit.choices) == ("linear", (STATIC, STORED8, INT4, FLOAT))
    assert (unit.parameters, unit.channels, unit.macs) == (4096, 64, 4096)
    recipe = space.recipe(space.first())
    assert dict(recipe.schemes) == {"embed": STORED8, "head": STATIC, "middle": STATIC}
    assert space.contains(recipe)
    assert not space.contains(Recipe({"head": STATIC}, (), "any"))
    assert space.weight_bytes(recipe) == 2 * (4096 + 4 * 64)
    assert any("'embed', 'head' share one weight" in note for note in space.notes)


def test_the_head_names_the_algorithm_for_both() -> None:
    gptq = Rule.model_validate({"types": "linear", "algorithm": "gptq"})
    space = build_space(toy(), [gptq])
    recipe = space.recipe({"head": space.by_name["head"].choices[0]})
    assert [recipe[name].algorithm.kind for name in ("head", "embed")] == [
        "gptq",
        "gptq",
    ]


@pytest.mark.parametrize("kept", ["head", "embed"])
def test_a_rule_that_keeps_one_of_them_in_float_unties_them(kept: str) -> None:
    space = build_space(toy(), [Rule.model_validate({"ops": kept, "keep": "float"})])
    assert [u.name for u in space.units] == ["embed", "middle", "head"]
    assert not space.by_name[kept].tunable
    assert space.by_name["embed" if kept == "head" else "head"].tunable
    assert any("each decides alone" in note for note in space.notes)


@pytest.mark.parametrize("given", [{"axis": 1}, {"table": ()}])
def test_ops_that_cannot_share_codes_decide_alone(given: Any) -> None:
    assert [u.name for u in build_space(toy(**given)).units] == [
        "embed",
        "middle",
        "head",
    ]


def test_both_in_float_stay_one_unit() -> None:
    space = build_space(
        toy(), [Rule.model_validate({"ops": ["head", "embed"], "keep": "float"})]
    )
    assert [(u.ops, u.tunable) for u in space.units] == [
        (("middle",), True),
        (("head", "embed"), False),
    ]
