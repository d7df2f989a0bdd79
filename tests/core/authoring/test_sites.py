"""What describers share: fusing behind a product, ties, costs, names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from octavo.plugin import (
    Flow,
    Op,
    Weight,
    is_bias_shape,
    macs,
    shared_weights,
    unique_names,
)


class _Node(NamedTuple):
    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def _flow(*nodes: _Node, outputs: tuple[str, ...] = ("out",)) -> Flow[_Node]:
    return Flow(nodes, lambda n: n.kind, lambda n: n.reads, lambda n: n.writes, outputs)


PRODUCT = _Node("MatMul", ("x", "w"), ("p",))
BIAS = _Node("Add", ("b", "p"), ("s",))
RELU = _Node("Relu", ("s",), ("out",))


def _is_b(name: str) -> bool:
    return name == "b"


def test_bias_and_activation_behind_a_product_become_part_of_it() -> None:
    flow = _flow(PRODUCT, BIAS, RELU)
    bias = flow.absorb_bias("p", ["Add"], _is_b)
    assert bias == (BIAS, "s", "b")
    activation = flow.absorb_activation("s", {"Relu": "relu", "Clamp": "clip"})
    assert activation == (RELU, "out", "relu")
    assert flow.absorbed == {BIAS, RELU}


@pytest.mark.parametrize(
    "others",
    [
        (BIAS, _Node("Relu", ("p",), ("q",))),  # somebody else reads the product
        (_Node("Add", ("p", "p"), ("s",)),),
        (_Node("Add", ("p", "c"), ("s",)),),
        (_Node("Sub", ("p", "b"), ("s",)),),
        (),
    ],
)
def test_what_is_no_bias_stays_a_node(others: tuple[_Node, ...]) -> None:
    flow = _flow(PRODUCT, *others)
    assert flow.absorb_bias("p", ["Add"], _is_b) is None
    assert not flow.absorbed


def test_nothing_is_absorbed_over_an_output_of_the_model() -> None:
    flow = _flow(PRODUCT, BIAS, RELU, outputs=("p", "out"))
    assert flow.absorb_bias("p", ["Add"], _is_b) is None
    assert flow.absorb_activation("s", {"Relu": "relu"}) is not None


def test_a_value_leads_to_its_writer_and_its_only_reader() -> None:
    flow = _flow(PRODUCT, BIAS, RELU)
    assert flow.producer("s", "Add") is BIAS and flow.producer("s", "Relu") is None
    assert flow.producer("x") is None
    assert flow.only_reader("s") is RELU and flow.only_reader("s", "Add") is None


@pytest.mark.parametrize(
    ("shape", "axis", "rank"),
    [((4,), -1, 3), ((1, 4), 1, 2), ((1, 4, 1, 1), 1, 4), ((4, 1, 1), 1, 4)],
)
def test_a_bias_has_one_number_per_channel(
    shape: tuple[int, ...], axis: int, rank: int
) -> None:
    assert is_bias_shape(shape, 4, axis, rank)
    # By NumPy's own rules it broadcasts along that axis and adds none.
    whole = [2] * rank
    whole[axis] = 4
    assert np.broadcast_shapes(shape, whole) == tuple(whole)


@pytest.mark.parametrize(
    ("shape", "axis", "rank"),
    [((4,), 1, 4), ((1,), -1, 2), ((), -1, 2), ((4, 4), -1, 2), ((1, 1, 4), -1, 2)],
)
def test_other_constants_are_no_bias(
    shape: tuple[int, ...], axis: int, rank: int
) -> None:
    assert not is_bias_shape(shape, 4, axis, rank)


def test_ops_of_one_weight_know_each_other() -> None:
    ops = [
        Op(n, "linear", weight=Weight(w, (2, 2)))
        for n, w in zip("abc", "wwv", strict=True)
    ]
    found = shared_weights([*ops, Op("d", "relu")])
    shared = [op.weight.shared_with if op.weight else None for op in found]
    assert shared == [("b",), ("a",), (), None]


@pytest.mark.parametrize(
    ("kind", "weight", "axis", "reads", "writes", "expected"),
    [
        ("linear", (4, 6), 0, (2, 5, 6), (2, 5, 4), 5 * 4 * 6),
        ("linear", (6, 4), 1, (None, 6), (None, 4), 4 * 6),
        ("conv", (8, 3, 5, 5), 0, (1, 3, 9, 9), (1, 8, 5, 5), 8 * 25 * 3 * 25),
        # Each of two groups sees half of the channels.
        ("conv", (8, 2, 3, 3), 0, (1, 4, 6, 6), (1, 8, 4, 4), 8 * 16 * 2 * 9),
        ("conv_transpose", (3, 8, 2, 2), 1, (1, 3, 4, 4), (1, 8, 8, 8), 16 * 3 * 8 * 4),
        ("matmul", None, 0, (2, 7, 5), (2, 7, 3), 7 * 3 * 5),
        ("linear", (4, 6), 0, (2, None, 6), (2, None, 4), None),
        ("linear", (4, 6), 0, None, None, None),
        ("relu", None, 0, (2, 4), (2, 4), None),
    ],
)
def test_products_are_counted_for_one_sample(
    kind: str,
    weight: tuple[int, ...] | None,
    axis: int,
    reads: tuple[int | None, ...] | None,
    writes: tuple[int | None, ...] | None,
    expected: int | None,
) -> None:
    held = None if weight is None else Weight("w", weight, channel_axis=axis)
    assert macs(kind, held, reads, writes) == expected


def test_names_are_unique_and_the_same_each_time() -> None:
    names = ["fc", "fc", "fc_2", "fc", "add"]
    assert unique_names(names) == ["fc", "fc_3", "fc_2", "fc_4", "add"]
    assert unique_names(unique_names(names)) == unique_names(names)
