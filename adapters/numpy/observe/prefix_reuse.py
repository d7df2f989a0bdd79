"""Running many candidates on the same few batches.

Values that a candidate computes as the float graph does are not computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.adapters.numpy.run.kernels import Kernels
from octavo.adapters.numpy.run.program import Program
from octavo.core.contract.adapter import Candidate
from octavo.core.contract.recall import Room
from octavo.core.values.graph import InputInfo


class Reuse:
    """Runs candidates of one session, each from the nodes on that differ from the float graph.

    The float graph is run once for each batch, when this is made. A model whose values are more
    than its share of memory (``RECALL_BYTES``) is run from the beginning.

    Args:
        graph: The float graph.
        program: That runs it.
        kernels: Of the session.
        batches: As the program feeds on them.
    """

    def __init__(
        self,
        graph: Graph,
        program: Program,
        kernels: Kernels,
        batches: Sequence[list[Array]],
    ) -> None:
        self._own = {id(node) for node in graph.nodes}
        self._kernels = kernels
        # Batch by batch: value name -> array; the inputs always, the rest while there is room.
        self._known: list[dict[str, Array]] = []
        names = [info.name for info in graph.inputs]
        for arrays in batches:
            self._known.append(dict(zip(names, arrays, strict=True)))
        written: list[str] = []
        for node in graph.nodes:
            written += filter(None, node.outputs)
        room = Room()
        for arrays, known in zip(batches, self._known, strict=True):
            # Measured in a run of its own: no value is kept before there is known to be room.
            sizes: list[int] = []
            program.run(arrays, dict.fromkeys(written, partial(_note_size, sizes)))
            if not room.take(sum(sizes)):
                self._own.clear()  # nothing is shared
                return
            program.run(arrays, dict.fromkeys(written, partial(_keep_copy, known)))

    def __call__(self, candidate: Candidate) -> Iterator[tuple[Array, ...]]:
        """Yield the candidate's outputs for each batch."""
        graph: Graph = candidate.graph  # type: ignore[attr-defined]
        rest = self.rest(graph)
        written: set[str] = set()
        read: dict[str, None] = {}
        for node in rest:
            written.update(node.outputs)
            read.update(dict.fromkeys(graph.reads(node)))
        read.update(dict.fromkeys(graph.outputs))
        given = [v for v in read if v not in written and v not in graph.initializers]
        inputs = tuple(InputInfo(v, None) for v in given)
        program = Program(graph.with_(nodes=tuple(rest), inputs=inputs), self._kernels)
        for known in self._known:
            yield program.run([known[v] for v in given], planned=False)

    def rest(self, graph: Graph) -> list[Node]:
        """Return the nodes whose results are not those of the float graph."""
        changed: set[str] = set()
        found = []
        for node in graph.nodes:
            is_new = id(node) not in self._own
            if is_new or not changed.isdisjoint(graph.reads(node)):
                found.append(node)
                changed.update(node.outputs)
        return found


def _note_size(sizes: list[int], _: str, array: Array) -> None:
    sizes.append(array.nbytes)


def _keep_copy(known: dict[str, Array], name: str, array: Array) -> None:
    known[name] = array.copy()
