"""Running many candidates on the same few batches: values that a candidate computes as the float graph does are not computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from octavo.adapters.numpy.graph import Graph, Node
from octavo.adapters.numpy.run.program import Kernels, Program
from octavo.core.contract.adapter import Candidate
from octavo.core.contract.recall import Room
from octavo.core.values.graph import InputInfo


class Reuse:
    """Runs candidates of one session, each from the nodes on that it does not share with the float graph.

    The float graph is run once for each batch, when this is made. A model whose values are more than its share of memory (``RECALL_BYTES``) is run
    from the beginning.

    Args:
        graph: The float graph.
        program: That runs it.
        kernels: Of the session.
        batches: As the program feeds on them.
    """

    def __init__(
        self, graph: Graph, program: Program, kernels: Kernels, batches: Sequence[list[np.ndarray]]
    ) -> None:
        self._own = {id(node) for node in graph.nodes}
        self._kernels = kernels
        names = [i.name for i in graph.inputs]
        self._known: list[dict[str, np.ndarray]] = [
            dict(zip(names, arrays, strict=True)) for arrays in batches
        ]
        written = [v for n in graph.nodes for v in n.outputs if v]
        room = Room()
        for arrays, known in zip(batches, self._known, strict=True):
            sizes: list[int] = []
            count = partial(_note_size, sizes)
            program.run(arrays, dict.fromkeys(written, count))
            if not room.take(sum(sizes)):
                self._own.clear()  # nothing is shared
                return
            keep = partial(_keep_copy, known)
            program.run(arrays, dict.fromkeys(written, keep))

    def __call__(self, candidate: Candidate) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the candidate's outputs for each batch."""
        graph: Graph = candidate.graph  # type: ignore[attr-defined]
        rest = self.rest(graph)
        written = {v for n in rest for v in n.outputs}
        read = dict.fromkeys(v for n in rest for v in graph.reads(n))
        read.update(dict.fromkeys(graph.outputs))
        given = [v for v in read if v not in written and v not in graph.initializers]
        program = Program(
            graph.with_(nodes=tuple(rest), inputs=tuple(InputInfo(v, None) for v in given)),
            self._kernels,
        )
        for known in self._known:
            yield program.run([known[v] for v in given], planned=False)

    def rest(self, graph: Graph) -> list[Node]:
        """Return the nodes whose results are not those of the float graph."""
        changed: set[str] = set()
        found = []
        for node in graph.nodes:
            if id(node) not in self._own or any(v in changed for v in graph.reads(node)):
                found.append(node)
                changed.update(node.outputs)
        return found


def _note_size(sizes: list[int], _: str, array: np.ndarray) -> None:
    sizes.append(array.nbytes)


def _keep_copy(known: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
    known[name] = array.copy()
