"""Channel maps: a function that stays, maps that follow each other, and what they do to what
calibration saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.calibration.calibrators.minmax import MinMax, MinMaxConfig
from octavo.core.calibration.features import FEATURE_OBSERVERS
from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.calibrator import Observer, Probe
from octavo.core.errors import SchemeError
from octavo.core.numerics.channels import (
    ChannelMap,
    as_map,
    chained,
    channel_maps,
    is_online,
)
from octavo.core.numerics.hadamard import hadamard, hadamard_parts
from octavo.core.numerics.rows import Rows
from octavo.core.values.graph import Group
from octavo.core.values.scheme import MINMAX, PartChoice
from tests.arrays import each_kind

SIZES = st.sampled_from([1, 3, 8, 12, 20, 64])


@st.composite
def maps(draw: Any, channels: int) -> ChannelMap:
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    scale = (
        np.exp(random.normal(size=channels)).astype(np.float32)
        if draw(st.booleans())
        else None
    )
    shift = (
        random.normal(0, 3, channels).astype(np.float32)
        if draw(st.booleans())
        else None
    )
    return ChannelMap(scale, shift, draw(st.none() | st.integers(0, 5)))


@given(st.data(), SIZES, st.booleans())
def test_readers_and_writers_keep_the_function(data: Any, n: int, bias: bool) -> None:
    """Plain products in float64 are the reference."""
    change, random = data.draw(maps(n)), np.random.default_rng(n)
    x = random.normal(size=(7, 5))
    first, second = random.normal(size=(n, 5)), random.normal(size=(4, n))
    b1, b2 = (random.normal(size=n), random.normal(size=4)) if bias else (None, None)
    value = x @ first.T + (0 if b1 is None else b1)
    expected = value @ second.T + (0 if b2 is None else b2)
    as32 = [
        None if a is None else a.astype(np.float32) for a in (first, b1, second, b2)
    ]
    turned, turned_bias = change.writer(as32[0], as32[1])
    moved = change.reader_bias(as32[2], as32[3])
    written = x @ turned.T + (0 if turned_bias is None else turned_bias)
    limit = 1e-5 * max(np.abs(value).max(), 1) * 10
    np.testing.assert_allclose(
        written, change.apply(value.astype(np.float32)), rtol=1e-4, atol=limit
    )
    found = written @ change.reader(as32[2]).T + (0 if moved is None else moved)
    size = np.abs(second).max() * np.abs(value).max() * n + np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * size)


@given(st.data(), SIZES)
def test_maps_that_follow_each_other(data: Any, n: int) -> None:
    sequence = data.draw(st.lists(maps(n), max_size=4))
    x = np.random.default_rng(n).normal(size=(3, n)).astype(np.float32)
    one, other = x, x
    for change in sequence:
        one = change.apply(one)
    for change in chained(sequence):
        other = change.apply(other)
    np.testing.assert_allclose(
        other, one, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(one).max()))
    )
    assert len(chained(sequence)) <= 1 + sum(c.rotation is not None for c in sequence)


@pytest.mark.parametrize("n", [1, 6, 7, 16, 96, 384])
@pytest.mark.parametrize("seed", [None, 2])
def test_a_rotation_in_two_small_products(n: int, seed: int | None) -> None:
    x = np.random.default_rng(0).normal(size=(5, n)).astype(np.float32)
    signs, left, right = hadamard_parts(n, x, seed)
    assert left.shape[0] * right.shape[0] == n
    y = (left @ (x * signs).reshape(5, len(left), len(right)) @ right).reshape(5, n)
    np.testing.assert_allclose(y, x @ hadamard(n, x, seed), atol=1e-5)


def test_what_a_group_does_not_take_is_refused() -> None:
    scaled = Group("g", "rescale", ("b",), "a", 4, "v")
    every = Group(
        "h",
        "rescale",
        ("b",),
        "a",
        4,
        "w",
        takes=frozenset({"scale", "shift", "rotation"}),
        online=frozenset({"rotation"}),
    )
    ones = np.ones(4, np.float32)
    assert [
        (g.name, c.scale.tolist())
        for g, c in channel_maps((scaled, every), {"g": ones.astype(np.float64)})
    ] == [("g", [1] * 4)]
    for wrong, message in (
        ({"x": ones}, "no rescale group 'x'"),
        ({"g": ones[:3]}, "takes 4 finite positive factors"),
        ({"g": -ones}, "positive factors"),
        ({"h": ChannelMap(shift=np.full(4, np.nan, np.float32))}, "finite shifts"),
        ({"g": ChannelMap(shift=ones)}, "takes scale and no shift"),
        ({"g": ChannelMap(ones, rotation=0)}, "takes scale and no rotation"),
    ):
        with pytest.raises(SchemeError, match=message):
            list(channel_maps((scaled, every), wrong))
    assert [
        is_online(every, c, already=False)
        for c in (ChannelMap(ones, ones), ChannelMap(rotation=0))
    ] == [False, True]
    assert is_online(every, ChannelMap(ones), already=True)
    assert as_map(ones).carries == {"scale"}


def observers(xs: list[Any], rows: Rows) -> Statistics:
    def make(probe: Probe) -> Observer:
        return (
            FEATURE_OBSERVERS[probe.calibrator.kind](probe.rows)
            if probe.rows
            else MinMax(MinMaxConfig(), probe.axis)
        )

    probes = [
        Probe("v", MINMAX),
        Probe("v", MINMAX, -1),
        *(Probe("v", PartChoice(kind=k), None, rows) for k in FEATURE_OBSERVERS),
    ]
    found = Statistics(probes, make)
    for x in xs:
        found.update("v", x)
    return found


@each_kind
@pytest.mark.parametrize(
    "carries", ["scale", "shift", "rotation", "shift scale", "shift scale rotation"]
)
def test_statistics_follow(carries: str, make: Any) -> None:
    """What is derived is what observing the changed value gives; what a rotation hides is named."""
    random = np.random.default_rng(0)
    xs = [
        (random.normal(size=(n, 12)) + np.linspace(-4, 4, 12)).astype(np.float32)
        for n in (40, 24)
    ]
    scale, shift = (
        np.linspace(0.5, 3, 12).astype(np.float32),
        np.linspace(-4, 3, 12).astype(np.float32),
    )
    change = ChannelMap(
        make(scale) if "scale" in carries else None,
        make(shift) if "shift" in carries else None,
        1 if "rotation" in carries else None,
    )
    rows = Rows()
    seen, expected = (
        observers([make(x) for x in xs], rows),
        observers([change.apply(make(x)) for x in xs], rows),
    )
    derived, missing = seen.rescaled({"v": change})
    hidden = {
        Probe("v", MINMAX),
        Probe("v", MINMAX, -1),
        Probe("v", PartChoice(kind="channel_range"), None, rows),
    }
    # A sum of squares does not know the cross terms of a shift or a rotation.
    of_squares = Probe("v", PartChoice(kind="channel_square"), None, rows)
    lost = set() if carries == "scale" else {of_squares}
    assert set(missing) == lost | (hidden if "rotation" in carries else set())
    assert set(derived.observers) == set(seen.observers) - set(missing)
    for probe, observer in derived.observers.items():
        other: Any = expected.observer(probe)
        for name in ("low", "high") if isinstance(observer, MinMax) else ("value",):
            a, b = np.asarray(getattr(observer, name)), np.asarray(getattr(other, name))
            np.testing.assert_allclose(
                a, b, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(b).max())
            )


def test_a_gram_matrix_is_not_centred_beyond_what_float32_holds() -> None:
    random = np.random.default_rng(0)
    loud = (random.normal(size=(200, 4)) + np.asarray([0, 0, 0, 1000])).astype(
        np.float32
    )
    rows = Rows()
    shift = ChannelMap(shift=np.asarray([0, 0, 0, 1000], np.float32))
    gram = Probe("v", PartChoice(kind="gram"), None, rows)
    assert gram in observers([loud], rows).rescaled({"v": shift})[1]
    quiet = loud - np.asarray([0, 0, 0, 997], np.float32)
    assert (
        gram
        not in observers([quiet], rows).rescaled(
            {"v": ChannelMap(shift=np.asarray([0, 0, 0, 3], np.float32))}
        )[1]
    )
    kernel = Rows((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
    assert gram.calibrator in {
        p.calibrator
        for p in observers([quiet[..., None, None]], kernel).rescaled({"v": shift})[1]
        if p.rows
    }
