"""Channels that trade scale by a step before the products."""

from __future__ import annotations

import numpy as np

from octavo.plugin import (
    ChannelMap,
    Op,
    Weight,
    keep_companions_float,
    reading_weight,
    step_factors,
    step_groups,
)


def _linear(name: str, reads: str, writes: str, **more: object) -> Op:
    weight = Weight(f"{name}.w", (6, 4))
    return Op(name, "linear", (reads,), (writes,), weight, **more)  # type: ignore[arg-type]


def test_a_group_for_each_value_that_products_read() -> None:
    q, k = _linear("q", "n", "a"), _linear("k", "n", "b")
    conv = Op(
        "c",
        "conv",
        ("i",),
        ("j",),
        Weight("c.w", (8, 2, 3, 3)),
        None,
        None,
        {"groups": 4},
    )
    (of_n, of_i) = step_groups([q, k, conv])
    assert of_n.members == ("q", "k") and of_n.channels == 4 and of_n.value == "n"
    assert of_i.members == ("c",) and of_i.channels == 8
    assert of_n.takes == of_n.online == {"scale"}


def test_what_cannot_take_factors_is_in_no_group() -> None:
    kept = _linear("q", "n", "a", out_of_reach="because")
    tied = Op("t", "linear", ("m",), ("b",), Weight("w", (6, 4), shared_with=("e",)))
    by_columns = Op("u", "linear", ("o",), ("d",), Weight("v", (6, 4), channel_axis=1))
    assert not list(step_groups([kept, tied, by_columns]))


def test_a_product_keeps_its_result() -> None:
    random = np.random.default_rng(0)
    op, scale = _linear("q", "n", "a"), random.uniform(0.5, 2, 4).astype(np.float32)
    x = random.normal(size=(5, 4)).astype(np.float32)
    weight = random.normal(size=(6, 4)).astype(np.float32)
    change = ChannelMap(scale)
    step, changed = step_factors(change, op, 2), reading_weight(change, op, weight)
    np.testing.assert_allclose(
        (x * step) @ changed.T, x @ weight.T, rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(changed, weight)


def test_channels_of_images_lie_second() -> None:
    conv = Op("c", "conv", ("i",), ("j",), Weight("w", (4, 3, 3, 3)))
    factors = step_factors(ChannelMap(np.array([1, 2, 4], np.float32)), conv, 4)
    assert factors.shape == (1, 3, 1, 1)
    np.testing.assert_array_equal(factors.ravel(), [1, 0.5, 0.25])


def test_elementwise_ops_stay_float_where_no_convolution_feeds_them() -> None:
    conv = Op("conv", "conv", ("x",), ("c",), Weight("w", (4, 3, 3, 3)))
    pool = Op("pool", "max_pool", ("c",), ("p",))
    fed = Op("fed", "add", ("p", "p"), ("s",))
    further = Op("further", "mul", ("s", "t"), ("u",))
    linear = _linear("linear", "t", "l")
    alone = Op("alone", "add", ("l", "t"), ("v",))
    kept = Op("kept", "add", ("c", "c"), ("w",), out_of_reach="its own reason")
    ops = keep_companions_float([conv, pool, fed, further, linear, alone, kept])
    why = {op.name: op.out_of_reach for op in ops}
    assert not why["fed"] and not why["further"] and not why["linear"]
    assert why["alone"] == "its neighbours compute in float"
    assert why["kept"] == "its own reason"
