"""Size against loss: which points are beaten."""

from __future__ import annotations

import pytest

from octavo.core.errors import ConfigError
from octavo.core.results.front import Front
from octavo.core.scoring.front import FrontPoint, with_unbeaten
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, QuantSpec

FOUR = OpScheme(
    mode="weight_only", weight=QuantSpec(dtype="int4", granularity="group:32")
)


def point(size: float, loss: float | None, **fields: object) -> FrontPoint:
    given: dict[str, object] = {"kind": "believed", "bits": size / 100, **fields}
    recipe = Recipe({"a": FOUR}, backend=f"b{size}")
    return FrontPoint(size=size, share=size / 1000, loss=loss, recipe=recipe, **given)  # type: ignore[arg-type]


def test_a_point_is_beaten_by_a_smaller_one_of_less_loss() -> None:
    given = [
        point(30, 2.0),
        point(10, 3.0),
        point(20, 3.0),
        point(40, None, kind="trial"),
        point(50, 0.5),
    ]
    found = with_unbeaten(given)
    assert [p.size for p in found] == [10, 20, 30, 40, 50]
    assert [p.unbeaten for p in found] == [True, False, True, True, True]
    assert Front(found).unbeaten == (found[0], *found[2:])


def test_of_points_alike_the_measured_one_is_no_worse() -> None:
    found = with_unbeaten([point(10, 1.0), point(10, 1.0, kind="trial", trial=1)])
    assert [(p.kind, p.unbeaten) for p in found] == [
        ("trial", True),
        ("believed", False),
    ]


def test_a_user_takes_the_least_loss_within_a_limit() -> None:
    front = Front(
        with_unbeaten(
            [point(100, 3.0), point(200, 1.0), point(300, 2.0), point(400, 0.5)]
        )
    )
    assert front.at(size=0.3).size == 200, "a share of float"
    assert front.at(size=300).size == 200, "bytes"
    assert front.at(size=400).size == 400
    assert front.at(bits=1.0).size == 100
    with pytest.raises(ConfigError, match=r"smallest has 0\.1"):
        front.at(size=0.05)
    with pytest.raises(ConfigError, match="one limit"):
        front.at()
    with pytest.raises(ConfigError, match="one limit"):
        front.at(size=1, bits=2)
    with pytest.raises(ConfigError, match="no points"):
        Front().at(bits=2)


def test_points_are_read_as_they_were_written() -> None:
    one = point(
        10, 1.5, kind="trial", trial=3, scores={"ppl": 9.0}, passed=False, unbeaten=True
    )
    assert FrontPoint.from_json(one.to_json()) == one
    assert FrontPoint.from_json({**one.to_json(), "later": 1}) == one
    with pytest.raises(ConfigError, match="size"):
        FrontPoint.from_json({**one.to_json(), "size": "large"})


def test_points_are_named_by_what_they_are() -> None:
    assert point(1, 1.0, kind="uniform").name == "uniform 4 bits"
    assert point(1, 1.0, kind="trial", trial=7).name == "trial 7"
    assert point(1, 0.0, kind="trial", trial=0).name == "float model"
