"""The static memory plan: no two living buffers share bytes, results do not change, the graph's
outputs are the caller's own."""

import threading

import numpy as np
import pytest

from octavo.adapters.numpy.graph import Builder, Graph, Node
from octavo.adapters.numpy.prepare.rewrites import optimised
from octavo.adapters.numpy.run.kernels import Kernels
from octavo.adapters.numpy.run.memory import Plan
from octavo.adapters.numpy.run.program import Program
from tests.adapters.numpy.test_conformance import (
    convolutional,
    images,
    tokens,
    transformer,
)


def program(graph: Graph) -> Program:
    return Program(optimised(graph), Kernels(1 << 20))


@pytest.mark.parametrize(
    ("graph", "batches"), [(convolutional(), images()), (transformer(), tokens())]
)
def test_planned_runs_equal_plain_runs_and_buffers_are_reused(
    graph: Graph, batches: list[tuple[np.ndarray, ...]]
) -> None:
    p = program(graph)
    for batch in batches:
        arrays = p.feed(batch)
        plain = p.run(arrays, planned=False)[0]
        plan = p.plan(arrays)
        assert 0 < plan.arena < plan.total
        for _ in range(2):
            np.testing.assert_array_equal(p.run(arrays)[0], plain)


@pytest.mark.parametrize("graph", [convolutional(), transformer()])
def test_buffers_that_live_together_do_not_overlap(graph: Graph) -> None:
    p = program(graph)
    batch = images()[0] if graph.inputs[0].name == "x" else tokens()[0]
    buffers = p.plan(p.feed(batch)).buffers
    for i, a in enumerate(buffers):
        for b in buffers[i + 1 :]:
            if a.step <= b.last and b.step <= a.last:
                assert (
                    a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
                )


def test_an_output_survives_the_next_run() -> None:
    b = Builder()
    x = b.input("x", (None, 64))
    y = b.Relu(b.Mul(b.Relu(b.Add(x, np.float32(1))), np.float32(2)))
    p = program(b.graph(b.Transpose(y), b.Add(y, y)))
    first = p.run([np.ones((32, 64), np.float32)])
    first = p.run([np.ones((32, 64), np.float32)])
    kept = [a.copy() for a in first]
    p.run([np.full((32, 64), 7, np.float32)])
    for a, k in zip(first, kept, strict=True):
        np.testing.assert_array_equal(a, k)


def test_views_keep_their_buffer_alive() -> None:
    """A value read late through a reshape must not be overwritten by what comes between."""
    b = Builder()
    x = b.input("x", (32, 64))
    early = b.Add(x, np.float32(1))
    view = b.Reshape(early, np.array([64, 32]))
    y = x
    for _ in range(4):
        y = b.Mul(y, np.float32(1.5))
    p = program(b.graph(b.MatMul(y, view)))
    array = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    expected = (array * np.float32(1.5) ** 4) @ (array + 1).reshape(64, 32)
    for _ in range(3):
        np.testing.assert_allclose(p.run([array])[0], expected, rtol=1e-4, atol=1e-4)


def test_threads_get_arenas_of_their_own() -> None:
    p = program(convolutional())
    batches = [p.feed(batch) for batch in images()]
    expected = [p.run(b)[0] for b in batches]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(
            i
            for _ in range(10)
            if not np.array_equal(p.run(batches[i])[0], expected[i])
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_body_s_captured_values_stay() -> None:
    b = Builder()
    x, flag = b.input("x", (16, 64)), b.input("flag", (), "bool")
    early = b.Add(x, np.float32(1))
    branch = Graph(
        (Node("Mul", (early, early), ("squared",), "square"),), {}, (), ("squared",)
    )
    chosen = b.node("If", flag, then_branch=branch, else_branch=branch, name="if")
    late = b.Mul(b.Mul(x, np.float32(3)), np.float32(2))
    p = Program(b.graph(b.Add(chosen, late)), Kernels(1 << 20))
    array = np.random.default_rng(1).normal(size=(16, 64)).astype(np.float32)
    for _ in range(3):
        np.testing.assert_allclose(
            p.run([array, np.array(True)])[0],
            (array + 1) ** 2 + array * 6,
            rtol=1e-5,
            atol=1e-5,
        )


def test_an_empty_plan() -> None:
    b = Builder()
    graph = b.graph(b.Reshape(b.input("x", (2, 3)), np.array([3, 2])))
    assert Plan(graph, {}).arena == 0
