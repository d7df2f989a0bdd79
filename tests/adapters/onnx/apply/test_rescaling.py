"""Scales, shifts and rotations in ONNX graphs: taken in by producers, or carried out by nodes
before the products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import octavo
from octavo.core.contract.plugins import PluginHost
from octavo.core.numerics.channels import ChannelMap
from octavo.core.values.recipe import Recipe
from tests.adapters.onnx.models import build, convolutional, weights

HOST = PluginHost(third_party=False)
X = np.random.default_rng(5).normal(0, 1, (6, 5, 12)).astype(np.float32)


def network() -> onnx.ModelProto:
    """Every kind of link: norms with and without a shift, a residual reader, GELU, a plain pair of
    products, ReLU, a gate."""
    t = weights(
        g=(12,),
        h=(12,),
        bare=(12, 24),
        wide=(24, 20),
        down=(20, 16),
        db=(16,),
        back=(16, 12),
        bb=(12,),
        k=(12,),
        gate=(12, 12),
        up=(12, 12),
        out=(12, 3),
    )
    t |= {"one": np.ones(12, np.float32), "wb": t["down"][:, 0].copy()}
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "g", "h"], ["n1"], "norm"),
        node("MatMul", ["n1", "bare"], ["p1"], "bare"),
        node("MatMul", ["p1", "wide"], ["p2"], "wide"),
        node("Add", ["p2", "wb"], ["p2b"], "wide_add"),
        node("Gelu", ["p2b"], ["a1"], "gelu"),
        node("MatMul", ["a1", "down"], ["p3"], "down"),
        node("Add", ["p3", "db"], ["p3b"], "down_add"),
        node("Relu", ["p3b"], ["r"], "relu"),
        node("MatMul", ["r", "back"], ["p4"], "back"),
        node("Add", ["p4", "bb"], ["p4b"], "back_add"),
        node("Add", ["p4b", "x"], ["s1"], "residual"),
        node("LayerNormalization", ["s1", "one"], ["n2"], "plain_norm"),
        node("MatMul", ["n2", "gate"], ["g1"], "gate"),
        node("MatMul", ["n2", "up"], ["u1"], "up"),
        node("Sigmoid", ["g1"], ["sg"], "sigmoid"),
        node("Mul", ["sg", "u1"], ["m"], "product"),
        node("Add", ["m", "n2"], ["s2"], "residual2"),
        node("Mul", ["s2", "s2"], ["square"], "square"),
        node("MatMul", ["square", "out"], ["y"], "out"),
    ]
    return build(
        nodes, t, {"x": ["n", 5, 12]}, {"y": ["n", 5, 3], "n2": ["n", 5, 12]}, opset=20
    )


MODEL = network()
SESSION = HOST.adapters()["onnx"].build().open(MODEL, (X,))
EXPECTED = SESSION.reference().run((X,))
GROUPS = {g.members[0]: g for g in SESSION.describe().groups if g.kind == "rescale"}


def check(session: Any) -> None:
    for found, expected in zip(
        session.apply(Recipe(backend="onnx"), {}).run((X,)), EXPECTED, strict=True
    ):
        np.testing.assert_allclose(
            found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
        )


def test_groups_say_what_they_take() -> None:
    every = {"scale", "shift", "rotation"}
    assert all(g.takes == every for g in GROUPS.values())
    online = {m: set(g.online) for m, g in GROUPS.items()}
    assert online == {
        "bare": {"rotation"},
        "wide": set(),
        "down": every,
        "back": {"shift", "rotation"},
        "gate": {"shift", "rotation"},
        "out": every,
    }
    convolutions = (
        HOST.adapters()["onnx"]
        .build()
        .open(convolutional(), (np.zeros((1, 3, 12, 12), np.float32),))
        .describe()
        .groups
    )
    conv = [
        g
        for g in convolutions
        if g.kind == "rescale" and any("conv" in m or "wise" in m for m in g.members)
    ]
    assert conv and all(g.takes == {"scale"} for g in conv)


@st.composite
def changes(draw: Any) -> dict[str, ChannelMap]:
    found = {}
    for group in draw(
        st.lists(
            st.sampled_from(list(GROUPS.values())),
            unique_by=lambda g: g.name,
            min_size=1,
        )
    ):
        random = np.random.default_rng(draw(st.integers(0, 99)))
        scale = (
            random.uniform(0.3, 3, group.channels).astype(np.float32)
            if draw(st.booleans())
            else None
        )
        shift = (
            random.normal(0, 1, group.channels).astype(np.float32)
            if draw(st.booleans())
            else None
        )
        found[group.name] = ChannelMap(
            scale, shift, draw(st.none() | st.integers(0, 3))
        )
    return found


def test_all_groups_at_once() -> None:
    """A linear op that gains a bias as a reader writes with it as a producer."""
    random = np.random.default_rng(0)
    every = [
        ChannelMap(random.uniform(0.5, 2, n), random.normal(size=n), i)
        for i, n in enumerate(g.channels for g in GROUPS.values())
    ]
    check(
        SESSION.rescale(
            {g.name: c for g, c in zip(GROUPS.values(), every, strict=True)}
        )
    )


@given(st.lists(changes(), min_size=1, max_size=2))
@settings(max_examples=12, deadline=None)
def test_any_sequence_of_changes_keeps_the_function(
    sequence: list[dict[str, ChannelMap]],
) -> None:
    session = SESSION
    for change in sequence:
        session = session.rescale(change)
    check(session)


def test_what_a_producer_takes_in_costs_no_node() -> None:
    """A bias that a shift needs is one node more for a MatMul; ONNX Runtime's products
    take it in."""

    def count(session: Any) -> int:
        return len(session._prepared.graph)

    wide, bare = GROUPS["wide"], GROUPS["bare"]
    rotated = SESSION.rescale({wide.name: ChannelMap(rotation=1)})
    assert count(rotated) == count(SESSION)
    moved = SESSION.rescale(
        {bare.name: ChannelMap(np.full(12, 2, np.float32), np.ones(12, np.float32))}
    )
    assert count(moved) == count(SESSION) + 1
    assert [op.name for op in moved.describe().ops] == [
        op.name for op in SESSION.describe().ops
    ]
    online = SESSION.rescale({bare.name: ChannelMap(rotation=1)})
    assert [op.name for op in online.describe().ops] == [
        op.name for op in SESSION.describe().ops
    ]


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic", "int4-weight-only"])
@pytest.mark.parametrize("transform", ["hadamard", "outlier_suppression_plus"])
def test_quantized_models_keep_them(
    scheme: str, transform: str, tmp_path: Path
) -> None:
    plain = octavo.quantize_model(MODEL, scheme, [(X,)], backend="onnx", host=HOST)
    recipe = Recipe(
        plain.candidate.recipe.schemes, (octavo.PartChoice(kind=transform),), "onnx"
    )
    made = octavo.quantize_model(MODEL, recipe, [(X,)], backend="onnx", host=HOST)
    assert made.candidate.recipe.transforms
    found = made.candidate.run((X,))
    for a, b in zip(found, EXPECTED, strict=True):
        assert np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)) > (
            0.97 if "int4" in scheme else 0.99
        )
    made.candidate.save(tmp_path)
    loaded = HOST.adapters()["onnx"].build().load(tmp_path)
    for a, b in zip(loaded.run((X,)), found, strict=True):
        np.testing.assert_array_equal(a, b)
    quantized = [n for n, s in made.candidate.recipe.schemes.items() if not s.is_float]
    assert quantized
    assert all(made.candidate.ledger[n].realization == "kernel" for n in quantized)
