"""The static memory plan: one arena, in which buffers that are never alive together share bytes.

Shapes are known after one run. In that run a tracer notes what each step allocates; :class:`Plan` then places the buffers
by their lifetimes, largest first, at the lowest offset that is free (the greedy-by-size order of Pisarchyk and Lee 2020,
"Efficient Memory Management for Deep Neural Net Inference"). Later runs take the same bytes again.

A buffer lives from its step to the last step that may read it. Values may be views of each other, so a step that does not
allocate is taken to return views of everything it reads: a few bytes are kept too long, none too short. What the graph
returns is never in the arena.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Graph

_ALIGN = 64
_SMALL = 1024  # bytes; smaller arrays are not worth a place in the plan

Empty = Callable[[tuple[int, ...], Any], np.ndarray]


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of the arena: step, which allocation of the step, bytes, last step that may read it, offset."""

    step: int
    index: int
    nbytes: int
    last: int
    offset: int


class Tracer:
    """Notes allocations of one run, which it serves with fresh arrays."""

    def __init__(self) -> None:
        self._requests: dict[tuple[int, int], int] = {}

    def allocator(self, step: int) -> Empty:
        """Return what a step calls in place of numpy.empty."""
        count = 0

        def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
            nonlocal count
            array = np.empty(shape, dtype)
            self._requests[step, count] = array.nbytes
            count += 1
            return array

        return empty

    def plan(self, graph: Graph) -> Plan:
        """Return the plan of the traced run."""
        return Plan(graph, self._requests)


class Plan:
    """Places of buffers in an arena.

    Attributes:
        arena: Bytes of the arena.
        total: Bytes of all its buffers; without reuse they would all be needed.
    """

    def __init__(self, graph: Graph, requests: dict[tuple[int, int], int]) -> None:
        allocating = {step for step, _ in requests}
        last = _last_reads(graph, allocating)
        wanted = [
            (n, step, index, last[step])
            for (step, index), n in requests.items()
            if n >= _SMALL and last[step] is not None
        ]
        self.buffers = _placed(wanted)
        self.arena = max((b.offset + b.nbytes for b in self.buffers), default=0)
        self.total = sum(b.nbytes for b in self.buffers)
        self._places = {(b.step, b.index): b for b in self.buffers}
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    @contextmanager
    def lease(self) -> Iterator[_Memory]:
        """Lend an arena to one run; runs in several threads get one each."""
        with self._lock:
            arena = self._free.pop() if self._free else np.empty(self.arena + _ALIGN, np.uint8)
        try:
            yield _Memory(self._places, arena)
        finally:
            with self._lock:
                self._free.append(arena)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a memory plan belongs to one process; the program makes it again")


class _Memory:
    def __init__(self, places: dict[tuple[int, int], Buffer], arena: np.ndarray) -> None:
        self._places = places
        start = -arena.ctypes.data % _ALIGN
        self._arena = arena[start:]

    def allocator(self, step: int) -> Empty:
        count = 0

        def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
            nonlocal count
            place = self._places.get((step, count))
            count += 1
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            if place is None or nbytes > place.nbytes:
                return np.empty(shape, dtype)
            return np.asarray(
                self._arena[place.offset : place.offset + nbytes].view(dtype).reshape(shape)
            )

        return empty


def _last_reads(graph: Graph, allocating: set[int]) -> dict[int, int | None]:
    """Return for each allocating step the last step that may read its result; None where it may leave the graph."""
    roots: dict[str, frozenset[int]] = {}
    last: dict[int, int | None] = {}
    for i, node in enumerate(graph.nodes):
        read = [roots.get(v, frozenset()) for v in graph.reads(node)]
        for root in frozenset().union(*read):
            if last.get(root, 0) is not None:
                last[root] = i
        if i in allocating:
            last[i] = i
            here = frozenset([i])
        else:
            here = frozenset().union(*read)
            if any(isinstance(a, Graph) for a in node.attributes.values()):
                last.update(dict.fromkeys(here))
        for value in node.outputs:
            if value:
                roots[value] = here
    for value in graph.outputs:
        last.update(dict.fromkeys(roots.get(value, frozenset())))
    return last


def _placed(wanted: list[tuple[int, int, int, int | None]]) -> tuple[Buffer, ...]:
    done: list[Buffer] = []
    for nbytes, step, index, end in sorted(wanted, key=lambda w: (-w[0], w[1], w[2])):
        assert end is not None
        size = nbytes + -nbytes % _ALIGN
        offset = 0
        for other in sorted(
            (b for b in done if b.step <= end and step <= b.last), key=lambda b: b.offset
        ):
            if offset + size <= other.offset:
                break
            offset = max(offset, other.offset + other.nbytes + -other.nbytes % _ALIGN)
        done.append(Buffer(step, index, nbytes, end, offset))
    return tuple(done)
