"""Time and bytes of each op of a NumPy graph."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from octavo.adapters.numpy import NumpyConfig
from octavo.adapters.numpy.adapter import NumpyAdapter
from octavo.adapters.numpy.files.archive import load_graph
from octavo.adapters.numpy.graph import Builder, Graph
from octavo.core.values.layers import REST
from tests.helpers import as_opened, preset_candidate


@pytest.fixture
def graph() -> Graph:
    """Return two small layers on one weight, and a wide one between them."""
    rng = np.random.default_rng(0)
    b = Builder()
    shared = b.constant(rng.normal(size=(64, 64)).astype(np.float32), "shared")
    bias = np.zeros(64, np.float32)
    x = b.Gemm(b.input("x", (None, 64)), shared, bias, name="first")
    up = rng.normal(size=(64, 4096)).astype(np.float32)
    x = b.Relu(b.Gemm(x, up, np.zeros(4096, np.float32), name="wide"), name="relu")
    down = rng.normal(size=(4096, 64)).astype(np.float32)
    x = b.Gemm(x, down, bias, name="down")
    return b.graph(b.Gemm(x, shared, bias, name="last"))


def batch() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)


@pytest.mark.parametrize("preset", ["int8-static", "int8-dynamic", "int4-weight-only"])
def test_figures_by_op(graph: Graph, preset: str, tmp_path: Path) -> None:
    opened = as_opened(NumpyAdapter(NumpyConfig()).open(graph, batch()))
    candidate = preset_candidate(opened, preset, [batch()])
    before = candidate.run(batch())
    times = candidate.profile(batch(), 0.05)
    assert {"first", "wide", "down", "last"} <= set(times)
    assert max(times["wide"], times["down"]) == max(times.values())
    found = candidate.bytes_by_op()
    candidate.save(tmp_path)
    saved, _ = load_graph(tmp_path / "model.npz")
    held = sum(array.nbytes for array in saved.initializers.values())
    assert sum(found.values()) == held
    assert found["wide"] > found["first"]
    # A candidate that travelled knows as much; what was timed runs as before.
    travelled = pickle.loads(pickle.dumps(candidate))
    assert travelled.bytes_by_op() == found
    np.testing.assert_array_equal(candidate.run(batch())[0], before[0])


def test_a_shared_weight_counts_with_the_first_that_reads_it(graph: Graph) -> None:
    opened = as_opened(NumpyAdapter(NumpyConfig()).open(graph, batch()))
    found = opened.session.reference().bytes_by_op()
    assert found["first"] == 4 * (64 * 64 + 64)
    # Its bias alone.
    assert found["last"] == 4 * 64
    assert found[REST] == 0
