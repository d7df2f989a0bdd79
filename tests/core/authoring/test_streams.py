"""Streams of channels in a small network: a factor changes nothing of what it computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octavo.plugin import Op, SchemeError, Weight, channel_streams, rescaled_weights

RNG = np.random.default_rng(0)
SHAPES = {"a": (4, 3), "b": (4, 4), "c": (2, 4)}
TENSORS = {
    **{f"{n}.w": RNG.normal(size=s).astype(np.float32) for n, s in SHAPES.items()},
    **{f"{n}.b": RNG.normal(size=s[0]).astype(np.float32) for n, s in SHAPES.items()},
}


def _linear(name: str, reads: str, writes: str, activation: str = "") -> Op:
    weight = Weight(f"{name}.w", SHAPES[name])
    extra = {"activation": activation} if activation else {}
    return Op(
        name, "linear", (reads,), (writes,), weight, f"{name}.b", attributes=extra
    )


def _conv(
    name: str, shape: tuple[int, ...], reads: str, writes: str, **more: int
) -> Op:
    return Op(name, "conv", (reads,), (writes,), Weight(name, shape), attributes=more)


OPS = (
    _linear("a", "x", "h", "relu"),
    _linear("b", "h", "g", "relu"),
    Op("sum", "add", ("h", "g"), ("s",)),
    _linear("c", "s", "y"),
)
"""y = c(h + b(h)), h = a(x): the sum ties what a and b write."""


def _run(tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    h = np.maximum(x @ tensors["a.w"].T + tensors["a.b"], 0)
    g = np.maximum(h @ tensors["b.w"].T + tensors["b.b"], 0)
    return (h + g) @ tensors["c.w"].T + tensors["c.b"]


def _nothing(op: Op) -> str:
    return ""


def test_a_sum_ties_what_it_adds() -> None:
    (group,) = channel_streams(OPS, ["y"], _nothing)
    assert set(group.values) == {"h", "g", "s"}
    assert set(group.members) == {"b", "c"}
    assert group.channels == 4


def test_factors_change_nothing_of_the_function() -> None:
    groups = channel_streams(OPS, ["y"], _nothing)
    scale = np.array([0.25, 3.0, 10.0, 0.5], np.float32)
    changed = rescaled_weights(
        OPS, groups, {groups[0].name: scale}, TENSORS.__getitem__
    )
    x = RNG.normal(size=(5, 3)).astype(np.float32)
    given = _run(TENSORS, x)
    np.testing.assert_allclose(
        _run({**TENSORS, **changed}, x), given, rtol=2e-4, atol=1e-5
    )
    np.testing.assert_allclose(changed["a.w"], TENSORS["a.w"] / scale[:, None])
    np.testing.assert_allclose(changed["a.b"], TENSORS["a.b"] / scale)
    np.testing.assert_allclose(changed["c.w"], TENSORS["c.w"] * scale)
    assert "c.b" not in changed


def test_what_leaves_the_model_or_is_clipped_ends_a_stream() -> None:
    assert channel_streams(OPS, ["y", "s"], _nothing) == ()
    clipped = (replace(OPS[0], attributes={"activation": "clip"}), *OPS[1:])
    assert channel_streams(clipped, ["y"], _nothing) == ()
    read = (*OPS, Op("norm", "layer_norm", ("s",), ("n",)))
    assert channel_streams(read, ["y"], _nothing) == ()
    shared = (
        replace(OPS[0], weight=Weight("a.w", (4, 3), shared_with=("z",))),
        *OPS[1:],
    )
    assert channel_streams(shared, ["y"], _nothing) == ()


def test_a_depthwise_convolution_reads_one_stream_and_writes_another() -> None:
    ops = (
        _conv("in", (6, 3, 3, 3), "x", "p"),
        _conv("deep", (6, 1, 3, 3), "p", "q", groups=6),
        Op("pool", "mean", ("q",), ("r",)),
        Op("flat", "reshape", ("r",), ("f",)),
        Op("out", "linear", ("f",), ("y",), Weight("out", (2, 6))),
    )
    roles = {"mean": "pools", "reshape": "flattens"}
    groups = channel_streams(ops, ["y"], lambda op: roles.get(op.type, ""))
    assert [g.members for g in groups] == [("deep",), ("out",)]
    arrays = {
        op.weight.name: np.ones(op.weight.shape, np.float32) for op in ops if op.weight
    }
    scale = np.arange(1, 7, dtype=np.float32)
    factors = {groups[1].name: scale}
    changed = rescaled_weights(ops, groups, factors, arrays.__getitem__)
    np.testing.assert_allclose(changed["deep"][:, 0, 0, 0], 1 / scale)
    np.testing.assert_allclose(changed["out"], [scale, scale])


def test_an_image_is_no_row_before_it_is_pooled() -> None:
    ops = (
        _conv("in", (6, 3, 1, 1), "x", "p"),
        Op("flat", "reshape", ("p",), ("f",)),
        Op("out", "linear", ("f",), ("y",), Weight("out", (2, 6))),
    )
    assert channel_streams(ops, ["y"], lambda op: "flattens") == ()


def test_an_unknown_group_is_refused() -> None:
    groups = channel_streams(OPS, ["y"], _nothing)
    with pytest.raises(SchemeError, match="there is no rescale group"):
        rescaled_weights(OPS, groups, {"other": np.ones(4)}, TENSORS.__getitem__)
