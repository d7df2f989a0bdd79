"""Algorithms of rules that cannot round what they are given: refused, or left out with a note."""

import pytest

from octavo.core.errors import ConfigError
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.values.scheme import PartChoice
from octavo.core.values.space import TuningSpace
from tests.helpers import opened_torch

torch = pytest.importorskip("torch")


def space(dtypes: list[str], algorithm: list[str]) -> TuningSpace:
    net = torch.nn.Sequential(torch.nn.Linear(64, 32))
    opened = opened_torch(net, torch.zeros(2, 64))
    rule = Rule(
        types="linear",
        mode="weight_only",
        weight={"dtype": dtypes},
        algorithm=algorithm,
    )
    return build_space(opened, [rule])


@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [("hqq", "mxfp4"), ("scale_estimation", "mxfp4"), ("adaround", "nf4")],
)
def test_one_that_could_do_nothing_is_refused(algorithm: str, dtype: str) -> None:
    with pytest.raises(ConfigError, match=rf"{algorithm} cannot round {dtype}.*gptq"):
        space([dtype], [algorithm])


def test_of_several_the_others_are_tried_and_a_note_says_so() -> None:
    found = space(["nf4", "int4"], ["adaround", "gptq"])
    (unit,) = found.tunable
    taken = {
        (scheme.weight.dtype, scheme.algorithm.kind)
        for scheme in unit.choices
        if scheme.weight is not None
    }
    assert taken == {("nf4", "gptq"), ("int4", "adaround"), ("int4", "gptq")}
    assert any("adaround cannot round nf4" in note for note in found.notes)


def test_without_named_algorithms_nothing_is_left_out() -> None:
    found = space(["nf4", "int4"], ["rtn"])
    (unit,) = found.tunable
    assert {s.algorithm for s in unit.choices} == {PartChoice(kind="rtn")}
    assert not any("left out" in note for note in found.notes)
