"""What stands in the base of every session: nothing is carried out that is not offered, and nothing
is lost."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from octavo.plugin import (
    FLOAT,
    AdapterFault,
    Applied,
    Candidate,
    Capability,
    Offer,
    OpParameters,
    OpScheme,
    PluginError,
    QuantSpec,
    Recipe,
    SchemeError,
    Session,
    one_op_parameters,
)
from tests.core.authoring.toy import (
    EXAMPLE,
    INPUTS,
    WEIGHT,
    Graph,
    ToyCandidate,
    ToySession,
)

W8 = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8"))
W4 = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int4"))


class _Offering(ToySession):
    def capability(self) -> Capability:
        return Capability("toy", offers={"linear": (Offer(W8),)})


def _given(scheme: OpScheme) -> dict[str, OpParameters]:
    return {"fc": one_op_parameters(ToySession().op, scheme, {"w": WEIGHT})}


def test_what_is_offered_is_carried_out() -> None:
    made = _Offering().apply(Recipe({"fc": W8}), _given(W8))
    assert dict(made.ledger) == {"fc": Applied(W8, W8)}
    assert made.run((EXAMPLE,))[0].shape == (16, 4)


def test_what_is_not_offered_is_refused_with_what_is() -> None:
    with pytest.raises(
        SchemeError, match=r"cannot carry out .*int4.*It can: weight_only"
    ):
        _Offering().apply(Recipe({"fc": W4}), _given(W4))
    with pytest.raises(SchemeError, match="int4"):
        _Offering().draft(Recipe({"fc": W4}), _given(W4))


def test_an_op_that_is_not_there_is_refused_with_the_nearest_name() -> None:
    given = {"fd": _given(W8)["fc"]}
    with pytest.raises(SchemeError, match=r"no op called 'fd'.*'fc'"):
        _Offering().apply(Recipe({"fd": W8}), given)


def test_an_op_that_the_ledger_forgets_is_a_fault_of_the_backend() -> None:
    def forget(
        recipe: Recipe, given: Mapping[str, OpParameters], graph: Graph
    ) -> ToyCandidate:
        return ToyCandidate(graph, recipe, {}, INPUTS)

    with pytest.warns(AdapterFault, match="no line for 'fc'"):
        made = _Offering(forget).apply(Recipe({"fc": W8}), _given(W8))
    assert (made.ledger["fc"].requested, made.ledger["fc"].applied) == (W8, FLOAT)
    assert not made.ledger["fc"].honoured


def test_a_session_with_an_apply_of_its_own_goes_on_working() -> None:
    class Older(_Offering):
        carry_out = Session.carry_out

        def apply(
            self, recipe: Recipe, parameters: Mapping[str, OpParameters]
        ) -> Candidate:
            return ToySession.carry_out(self, recipe, parameters)

    made = Older().apply(Recipe({"fc": W8}), _given(W8))
    assert made.run((EXAMPLE,))[0].shape == (16, 4)


def test_a_session_without_either_says_what_is_missing() -> None:
    class Empty(_Offering):
        carry_out = Session.carry_out

    with pytest.raises(PluginError, match="Empty must define carry_out"):
        Empty().apply(Recipe({"fc": W8}), _given(W8))
