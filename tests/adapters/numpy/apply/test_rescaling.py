"""Scales, shifts and rotations on NumPy graphs: taken in by producers, or carried out by nodes
before the products."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import octavo
from octavo.adapters.numpy.formats.standalone.export import export
from octavo.adapters.numpy.graph import Builder
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import SchemeError
from octavo.core.numerics.channels import ChannelMap
from octavo.core.values.recipe import Recipe

HOST = PluginHost(third_party=False)
RNG = np.random.default_rng(5)
X = RNG.normal(0, 1, (6, 5, 12)).astype(np.float32)


def graph() -> Any:
    """Every kind of link: norms with and without a shift, a residual reader, GELU, a plain pair of
    products, ReLU, a gate."""
    b = Builder()
    w = lambda *s: RNG.normal(0, 0.4, s).astype(np.float32)  # noqa: E731
    x = b.input("x", (None, 5, 12))
    y = b.LayerNormalization(x, w(12) + 1, w(12), name="norm")
    y = b.Gemm(y, w(12, 24), name="bare")  # no bias, nothing between it and the next
    y = b.Gelu(b.Gemm(y, w(20, 24), w(20), transB=1, name="wide"))
    y = b.Relu(b.Gemm(y, w(20, 16), w(16), name="down"))
    y = b.Gemm(y, w(16, 12), w(12), name="back")
    y = b.RMSNormalization(b.Add(x, y), w(12) + 1, name="rms")
    y = b.Add(
        y,
        b.Mul(
            b.Gemm(y, w(12, 12), name="gate"),
            b.Sigmoid(b.Gemm(y, w(12, 12), name="up")),
        ),
    )
    return b.graph(b.Gemm(b.Mul(y, y), w(12, 3), w(3), name="out"))


GRAPH = graph()


SESSION = HOST.adapters()["numpy"].build().open(GRAPH, (X,))
EXPECTED = SESSION.reference().run((X,))[0]
GROUPS = {g.members[0]: g for g in SESSION.describe().groups}


def test_groups_say_what_they_take() -> None:
    every = {"scale", "shift", "rotation"}
    assert all(g.takes == every for g in GROUPS.values())
    online = {m: set(g.online) for m, g in GROUPS.items()}
    assert online == {
        "bare": {"rotation"},
        "wide": set(),
        "down": every,
        "back": {"shift", "rotation"},
        "gate": every,
        "out": every,
    }


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


@given(st.lists(changes(), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_any_sequence_of_changes_keeps_the_function(
    sequence: list[dict[str, ChannelMap]],
) -> None:
    session = SESSION
    for change in sequence:
        session = session.rescale(change)
    found = session.apply(Recipe(backend="numpy"), {}).run((X,))[0]
    # 1e-5 of the largest output for each change: their roundings add up.
    np.testing.assert_allclose(
        found, EXPECTED, rtol=1e-5, atol=len(sequence) * 1e-5 * np.abs(EXPECTED).max()
    )


def test_what_a_producer_takes_in_costs_no_node() -> None:
    for member, extra in (("wide", 0), ("bare", 8), ("down", 8)):
        group = GROUPS[member]
        shift = np.ones(group.channels, np.float32)
        change = ChannelMap(shift + 1, shift, 0)
        assert (
            len(SESSION.rescale({group.name: change}).graph.nodes)
            - len(SESSION.graph.nodes)
            == extra
        )
    folded = SESSION.rescale(
        {
            GROUPS["bare"].name: ChannelMap(
                np.full(12, 2.0, np.float32), np.ones(12, np.float32)
            )
        }
    )
    assert len(folded.graph.nodes) == len(SESSION.graph.nodes)


def test_convolutions_take_no_shift() -> None:
    b = Builder()
    w = lambda *s: RNG.normal(0, 0.4, s).astype(np.float32)  # noqa: E731
    x = b.input("x", (None, 3, 6, 6))
    y = b.Conv(
        b.Conv(x, w(4, 3, 3, 3), w(4), name="a"),
        w(2, 4, 3, 3),
        name="b",
        pads=(1, 1, 1, 1),
    )
    session = (
        HOST.adapters()["numpy"]
        .build()
        .open(b.graph(y), (np.zeros((1, 3, 6, 6), np.float32),))
    )
    (group,) = session.describe().groups
    with pytest.raises(SchemeError, match="takes scale and no shift"):
        session.rescale({group.name: ChannelMap(shift=np.ones(4, np.float32))})


@pytest.mark.parametrize("transform", ["hadamard", "outlier_suppression_plus"])
def test_saved_and_standalone_models_keep_them(transform: str, tmp_path: Path) -> None:
    made = octavo.quantize_model(
        GRAPH,
        {"transforms": [transform], "rules": [{"mode": "weight_only"}]},
        [(X,)],
        backend="numpy",
        host=HOST,
    )
    assert any(not s.is_float for s in made.candidate.recipe.schemes.values())
    expected = made.candidate.run((X,))[0]
    folder = tmp_path / "saved"
    folder.mkdir()
    made.candidate.save(folder)
    np.testing.assert_array_equal(
        HOST.adapters()["numpy"].build().load(folder).run((X,))[0], expected
    )
    export(made, tmp_path / "alone")
    runner = runpy.run_path(str(tmp_path / "alone" / "run.py"))["Model"](
        tmp_path / "alone" / "model.npz"
    )
    np.testing.assert_allclose(runner(X)[0], expected, rtol=1e-4, atol=1e-4)
