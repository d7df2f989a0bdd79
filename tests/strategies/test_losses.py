"""What is looked at before a sensitivity is paid for."""

from __future__ import annotations

import numpy as np

from octavo.core.contract.strategy import Problem
from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from octavo.strategies.beliefs.losses import shortlist

W8, W4 = (
    QuantSpec(dtype="int8", granularity="channel"),
    QuantSpec(dtype="int4", granularity="group:32"),
)
X8 = QuantSpec(dtype="uint8", symmetric=False)
STATIC = OpScheme(mode="static", weight=W8, input=X8)
DYNAMIC = OpScheme(mode="dynamic", weight=W8, input=X8)
CHOICES = (
    STATIC,
    DYNAMIC,
    OpScheme(mode="weight_only", weight=W8),
    OpScheme(mode="weight_only", weight=W4),
    FLOAT,
)
ERRORS = dict(zip(CHOICES, (0.010, 0.0095, 0.002, 0.05, 0.0), strict=True))
COSTS = np.array([0.35, 0.45, 0.95, 0.97, 1.0])


def listed(costs: np.ndarray, **budgets: float) -> list[int]:
    unit = Unit("u", "linear", ("u",), CHOICES, "b", 1024, 1024)
    problem = Problem(
        TuningSpace("x", (unit,)),
        sensitivity=lambda kind, pairs: [ERRORS[s] for _, s in pairs],
        budgets=budgets,
    )
    return shortlist(problem, [costs])[0]


def test_of_each_mode_something_is_looked_at() -> None:
    # Weight errors say that dynamic is hardly better than static, which outliers of the activations
    # may turn round.
    assert listed(COSTS) == [0, 1, 2, 4]


def test_what_is_out_of_the_question_is_not() -> None:
    assert listed(np.where(COSTS > 0.9, np.inf, COSTS)) == [0, 1, 4]


def test_under_a_budget_what_is_smaller_is_looked_at_too() -> None:
    assert 3 not in listed(COSTS)
    assert 3 in listed(COSTS, size=0.2)
