"""Steps of a graph belong to the op that they serve; typical times are deaf to outliers."""

from __future__ import annotations

import pytest

from octavo.core.contract.attribution import Step, by_op, owners_of, typical
from octavo.core.values.layers import REST


def test_a_step_that_the_model_lacks_belongs_to_the_op_it_serves() -> None:
    steps = [
        Step(REST, ["x"], ["masked"]),
        Step(None, ["masked"], ["codes"]),
        Step("conv", ["codes", "weight_codes"], ["conv_codes"]),
        Step(None, ["conv_codes"], ["floats"], trails=True),
        Step("softmax", ["floats"], ["y"]),
        Step(None, ["y"], ["y_half"]),
    ]
    # A quantization is its reader's, a dequantization its writer's, the last cast its writer's.
    assert owners_of(steps) == [REST, "conv", "conv", "conv", "softmax", "softmax"]


def test_chains_of_helpers_and_dequantized_weights_find_their_op() -> None:
    steps = [
        Step(None, ["stored"], ["unpacked"], trails=True),
        Step(None, ["x"], ["moved"]),
        Step(None, ["moved"], ["codes"]),
        Step("linear", ["codes", "unpacked"], ["y"]),
    ]
    assert owners_of(steps) == ["linear"] * 4


def test_steps_between_no_ops_are_the_rest() -> None:
    steps = [Step(REST, ["x"], ["a"]), Step(None, ["a"], ["b"])]
    assert owners_of(steps) == [REST, REST]


def test_typical_times_ignore_outliers_and_keep_fractions() -> None:
    assert typical([1.0, 2.0, 1.0, 2.0, 900.0, 0.0, 1.0, 2.0]) == 1.5
    assert typical([3.0]) == 3.0


def test_the_rest_makes_the_sum_the_time_of_a_call() -> None:
    calls = [{"a": 1.0, "b": 2.0, REST: 9.0}, {"a": 1.0, "b": 2.0}, {"a": 1.0}]
    found = by_op(calls, [5.0, 5.0, 5.0])
    assert found["a"] == 1.0
    assert sum(found.values()) == pytest.approx(5.0)
    assert by_op([{"a": 9.0}], [5.0])[REST] == 0.0
