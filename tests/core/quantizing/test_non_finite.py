"""Parameters that no setting can work around are looked at when a model is opened, once for all
backends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octavo.core.quantizing.non_finite import refuse_parameters
from octavo.plugin import (
    Capability,
    Group,
    ModelView,
    NonFiniteWeight,
    Offer,
    Op,
    OpScheme,
    QuantSpec,
    Weight,
)
from tests.core.authoring.toy import ToySession

OFFERED = Capability(
    "mine",
    offers={
        "linear": (Offer(OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8"))),)
    },
)
LINEAR = Op("fc", "linear", ("x",), ("y",), Weight("w", (2, 2)), "b")


class _Tensors(ToySession):
    """Holds tensors and counts who asks for them."""

    def __init__(self, bad: str) -> None:
        self.bad = bad
        self.asked: list[str] = []

    def tensor(self, name: str) -> np.ndarray:
        self.asked.append(name)
        return np.array([1.0, np.nan if name == self.bad else 2.0], np.float32)


@pytest.mark.parametrize(
    ("bad", "ops"),
    [
        ("b", (LINEAR,)),
        ("w", (replace(LINEAR, out_of_reach="its shape is odd"),)),
        ("w", (replace(LINEAR, type="conv"),)),  # nothing is offered for it
    ],
)
def test_what_nothing_works_around_is_refused_by_name(
    bad: str, ops: tuple[Op, ...]
) -> None:
    with pytest.raises(NonFiniteWeight, match=f"tensor '{bad}' of 'fc'"):
        refuse_parameters(_Tensors(bad), ModelView(ops), OFFERED)


def test_a_gain_that_a_group_names_is_refused() -> None:
    group = Group("g", "rescale", ("fc",), "norm", 2, "x", gain="gain", shift="shift")
    view = ModelView((LINEAR,), (group,))
    with pytest.raises(NonFiniteWeight, match="'shift' of 'norm'"):
        refuse_parameters(_Tensors("shift"), view, OFFERED)


def test_a_weight_that_may_be_quantized_is_left_to_the_run_and_nothing_is_read_twice() -> (
    None
):
    session = _Tensors("w")
    refuse_parameters(session, ModelView((LINEAR, replace(LINEAR, name="d"))), OFFERED)
    assert session.asked == ["b"]
