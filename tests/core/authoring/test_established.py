"""What is established by trying: true claims stay, and each kind of lie is found."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

from octavo.plugin import (
    FLOAT,
    AdapterFault,
    Applied,
    Batch,
    Candidate,
    Offer,
    OpParameters,
    OpScheme,
    QuantSpec,
    Recipe,
    Session,
    established,
)

from .toy import EXAMPLE, INPUTS, WEIGHT, Graph, ToyCandidate, ToySession

W8 = QuantSpec(dtype="int8", granularity="channel")
X8 = QuantSpec(dtype="uint8", symmetric=False)
STATIC = Offer(OpScheme(mode="static", weight=W8, input=X8))
PACKED = Offer(OpScheme(mode="weight_only", weight=W8))


def _agrees(candidate: Candidate, op: str) -> str:
    return ""


def _ask(
    lie: Any = None, witness: Any = _agrees, offers: Any = (STATIC, PACKED)
) -> tuple[Offer, ...]:
    # A function of its own each time: nothing is taken from what was asked before.
    def probe(kind: str) -> tuple[Session, Batch]:
        return ToySession(lie), (EXAMPLE,)

    return established({"linear": offers}, probe, witness).get("linear", ())


def test_what_runs_as_it_says_is_offered_as_it_is() -> None:
    assert _ask() == (STATIC, PACKED)


def test_without_a_witness_it_is_simulated() -> None:
    def only_static(candidate: Candidate, op: str) -> str:
        assert op == "fc"
        return "" if candidate.recipe[op].mode == "static" else "it runs in float"

    realizations = [offer.realization for offer in _ask(witness=only_static)]
    assert realizations == ["kernel", "simulated"]


def test_a_claim_of_simulated_is_not_raised_to_kernel() -> None:
    modest = Offer(STATIC.scheme, "simulated")
    assert _ask(offers=(modest,)) == (modest,)


def _float(recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph) -> Any:
    return Graph(WEIGHT)


def _wrong_scale(
    recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph
) -> Any:
    return Graph(graph.weight * 2, graph.scale, graph.zero_point)


def _not_finite(recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph) -> Any:
    return Graph(graph.weight * np.float32(np.nan), graph.scale, graph.zero_point)


def _other_shape(
    recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph
) -> Any:
    return Graph(graph.weight[:2], graph.scale, graph.zero_point)


def _raises(recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph) -> Any:
    raise RuntimeError("no kernel")


def _says_float(recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph) -> Any:
    ledger = {name: Applied(recipe[name], FLOAT, "kernel", "odd") for name in recipe}
    return ToyCandidate(graph, recipe, ledger, INPUTS)


def _says_nothing(
    recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph
) -> Any:
    return ToyCandidate(graph, recipe, {}, INPUTS)


def _zero_point_off_by_one(
    recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph
) -> Any:
    # The codes are as they should be, and are read with another zero point: a few percent of the
    # range, which is within what 8 bits may be from float.
    shifted = graph.weight.sum(axis=1) * np.float32(graph.scale)
    return ToyCandidate(
        graph,
        recipe,
        {name: Applied(recipe[name], recipe[name]) for name in recipe},
        INPUTS,
        shift=shifted if graph.scale else None,
    )


def _inputs_in_float(
    recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph
) -> Any:
    return Graph(graph.weight)


@pytest.mark.parametrize("lie", [_zero_point_off_by_one, _inputs_in_float])
def test_numbers_are_held_against_rounding_and_not_against_float_alone(
    lie: Any,
) -> None:
    assert _ask(lie) == (PACKED,)


@pytest.mark.parametrize(
    "lie",
    [
        _float,
        _wrong_scale,
        _not_finite,
        _other_shape,
        _raises,
        _says_float,
        _says_nothing,
    ],
)
def test_what_is_not_carried_out_is_not_offered(lie: Any) -> None:
    assert _ask(lie) == ()


def _says_simulated(
    recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph
) -> Any:
    line = Applied(STATIC.scheme, STATIC.scheme, "simulated", "it falls back")
    return ToyCandidate(graph, recipe, {"fc": line}, INPUTS)


def test_the_ledger_is_believed_where_it_claims_less() -> None:
    (found,) = _ask(_says_simulated, offers=(STATIC,))
    assert found.realization == "simulated"


def test_an_offer_that_refuses_the_op_is_not_tried() -> None:
    picky = Offer(STATIC.scheme, refuses=lambda op: "only for odd shapes")
    assert _ask(offers=(picky,)) == ()


def test_a_narrowed_offer_is_tried_with_the_range_it_is_for() -> None:
    seen: list[int] = []

    def note(recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph) -> Any:
        weight = given["fc"].weight
        assert weight is not None
        seen.append(int(np.abs(weight.codes).max()))
        return graph

    _ask(note, offers=(STATIC, Offer(STATIC.scheme, narrowed=lambda: "no VNNI")))
    assert seen == [127, 63]


def test_each_question_is_answered_once() -> None:
    asked: list[str] = []

    def probe(settings: int, kind: str) -> tuple[Session, Batch]:
        asked.append(kind)
        return ToySession(), (EXAMPLE,)

    for settings in (1, 1, 2):
        offers = {"linear": (STATIC,), "conv": ()}
        found = established(offers, partial(probe, settings), _agrees)
        assert found == {"linear": (STATIC,)}
    assert asked.count("linear") == 2


def test_without_a_model_nothing_is_offered() -> None:
    assert established({"linear": (STATIC,)}, lambda kind: None, _agrees) == {}


def test_a_model_without_the_op_is_a_fault_of_the_backend() -> None:
    def probe(kind: str) -> tuple[Session, Batch]:
        return ToySession(), (EXAMPLE,)

    with pytest.warns(AdapterFault, match="'conv'"):
        assert established({"conv": (STATIC,)}, probe, _agrees) == {}


def test_a_backend_that_asks_while_it_is_tried_is_told_what_is_claimed() -> None:
    asked: list[dict[str, tuple[Offer, ...]]] = []

    def offers() -> dict[str, tuple[Offer, ...]]:
        return established({"linear": (STATIC, PACKED)}, probe, only_static)

    def note(recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph) -> Any:
        asked.append(offers())
        return graph

    def probe(kind: str) -> tuple[Session, Batch]:
        return ToySession(note), (EXAMPLE,)

    def only_static(candidate: Candidate, op: str) -> str:
        return "" if candidate.recipe[op].mode == "static" else "it runs in float"

    simulated = Offer(PACKED.scheme, "simulated")
    assert offers() == {"linear": (STATIC, simulated)}
    assert asked == [{"linear": (STATIC, PACKED)}] * 2
    assert offers() == {"linear": (STATIC, simulated)}


def test_where_nothing_is_left_the_author_is_told_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "octavo.authoring"):
        assert _ask(_raises) == ()
    assert "none of 2 schemes is offered: RuntimeError: no kernel" in caplog.text
