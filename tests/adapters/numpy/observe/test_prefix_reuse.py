"""Candidates that start at their first changed node give what they give from the beginning."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.adapters.numpy.graph import Builder
from octavo.adapters.numpy.session import NumpySession
from octavo.core.contract import recall
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.recipe import Recipe
from tests.helpers import as_opened

HOST = PluginHost(third_party=False)


@pytest.fixture(scope="module")
def prepared() -> tuple[NumpySession, Realizer, list[tuple[np.ndarray]]]:
    random = np.random.default_rng(0)
    b = Builder()
    x = y = b.input("x", (None, 8))
    for width in (16, 16, 4):
        y = b.Relu(
            b.Gemm(
                y,
                random.normal(0, 1, (8 if y is x else 16, width)).astype(np.float32),
                np.zeros(width, np.float32),
            )
        )
    batches = [(random.normal(0, 1, (6, 8)).astype(np.float32),) for _ in range(2)]
    session = HOST.adapters()["numpy"].build().open(b.graph(y), batches[0])
    opened = as_opened(session)
    realizer = Realizer(opened, build_space(opened), HOST)
    realizer.calibrate(batches)
    return session, realizer, batches


def test_outputs_are_the_same_and_unchanged_nodes_are_not_run(prepared) -> None:
    session, realizer, batches = prepared
    runner = session.runner(batches)
    left = []
    for unit in realizer.space.tunable:
        for scheme in unit.choices[:3]:
            candidate = realizer.candidate(
                Recipe(dict.fromkeys(unit.ops, scheme), (), "numpy")
            )
            for found, batch in zip(runner(candidate), batches, strict=True):
                np.testing.assert_array_equal(found[0], candidate.run(batch)[0])
        left.append(len(runner.rest(candidate.graph)))
    assert left == sorted(left, reverse=True)
    assert left[0] > left[-1] >= 1
    reference = session.reference()
    assert runner.rest(reference.graph) == []
    np.testing.assert_array_equal(
        next(runner(reference))[0], reference.run(batches[0])[0]
    )


def test_a_model_too_large_to_remember_is_run_from_the_beginning(
    prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, realizer, batches = prepared
    monkeypatch.setattr(recall, "RECALL_BYTES", 100)
    runner = session.runner(batches)
    candidate = realizer.candidate(realizer.space.recipe(realizer.space.first()))
    assert len(runner.rest(candidate.graph)) == len(candidate.graph.nodes)
    np.testing.assert_array_equal(
        next(runner(candidate))[0], candidate.run(batches[0])[0]
    )
