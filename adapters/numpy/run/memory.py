"""The static memory plan: one arena, where buffers that are never alive together share bytes.

Shapes are known after one run. In that run a tracer notes what each step allocates; :class:`Plan`
then places the buffers by their lifetimes, largest first, at the lowest offset that is free (the
greedy-by-size order of Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net
Inference"). Later runs take the same bytes again.

A buffer lives from its step to the last step that may read it. Values may be views of each other,
so a step that does not allocate is taken to return views of everything it reads: a few bytes are
kept too long, none too short. What the graph returns is never in the arena.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from octavo.adapters.numpy.graph import Array, Graph

_ALIGN = 64  # bytes of a cache line, and of the widest vector register
_SMALL = 1024  # bytes; smaller arrays are not worth a place in the plan

Empty = Callable[[tuple[int, ...], Any], Array]
"""A stand-in for numpy.empty."""

Requests = Mapping[tuple[int, int], int]
"""(step, which allocation of the step) -> bytes."""


class Allocators(Protocol):
    """Gives each step of a run what it allocates with."""

    def allocator(self, step: int) -> Empty:
        """Return what a step calls in place of numpy.empty."""


class _Request(NamedTuple):
    """A buffer without a place; in the order in which buffers are placed."""

    negated_bytes: int
    step: int
    nth: int
    last: int


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of the arena.

    Attributes:
        step: Which step allocates it.
        index: Which allocation of the step it is.
        nbytes: Its bytes.
        last: The last step that may read it.
        offset: Where it begins.
    """

    step: int
    index: int
    nbytes: int
    last: int
    offset: int

    @property
    def end(self) -> int:
        """Where the next buffer may begin."""
        return self.offset + _aligned(self.nbytes)


def _aligned(nbytes: int) -> int:
    return nbytes + -nbytes % _ALIGN


class Tracer:
    """Notes allocations of one run, which it serves with fresh arrays."""

    def __init__(self) -> None:
        self._requests: dict[tuple[int, int], int] = {}

    def allocator(self, step: int) -> Empty:
        """Return what a step calls in place of numpy.empty."""
        count = 0

        def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
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

    def __init__(self, graph: Graph, requests: Requests) -> None:
        allocating = {step for step, _ in requests}
        last = _last_reads(graph, allocating)
        wanted = []
        for (step, index), nbytes in requests.items():
            end = last[step]
            if nbytes >= _SMALL and end is not None:
                wanted.append(_Request(-nbytes, step, index, end))
        self.buffers = _placed(wanted)
        self.arena = max((b.offset + b.nbytes for b in self.buffers), default=0)
        self.total = sum(b.nbytes for b in self.buffers)
        self._places = {(b.step, b.index): b for b in self.buffers}
        self._free: list[Array] = []
        self._lock = threading.Lock()

    @contextmanager
    def lease(self) -> Iterator[_Memory]:
        """Lend an arena to one run; runs in several threads get one each."""
        with self._lock:
            arena = (
                self._free.pop()
                if self._free
                else np.empty(self.arena + _ALIGN, np.uint8)
            )
        try:
            yield _Memory(self._places, arena)
        finally:
            with self._lock:
                self._free.append(arena)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a memory plan belongs to one process; the program makes it again"
        )


class _Memory:
    """Serves the allocations of one run from an arena."""

    def __init__(self, places: Mapping[tuple[int, int], Buffer], arena: Array) -> None:
        self._places = places
        # numpy.empty promises less; the arena has room to begin at a whole cache line.
        start = -arena.ctypes.data % _ALIGN
        self._arena = arena[start:]

    def allocator(self, step: int) -> Empty:
        """Return what a step calls in place of numpy.empty."""
        count = 0

        def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
            nonlocal count
            place = self._places.get((step, count))
            count += 1
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            if place is None or nbytes > place.nbytes:
                return np.empty(shape, dtype)
            piece = self._arena[place.offset : place.offset + nbytes]
            return np.asarray(piece.view(dtype).reshape(shape))

        return empty


def _last_reads(graph: Graph, allocating: set[int]) -> dict[int, int | None]:
    """Return for each allocating step the last step that may read its result.

    None where the result may leave the graph.
    """
    # Value -> the steps whose buffers it may be a view of.
    roots: dict[str, frozenset[int]] = {}
    last: dict[int, int | None] = {}
    for i, node in enumerate(graph.nodes):
        read: frozenset[int] = frozenset()
        for value in graph.reads(node):
            read |= roots.get(value, frozenset())
        for root in read:
            if last[root] is not None:
                last[root] = i
        if i in allocating:
            last[i] = i
            written = frozenset([i])
        else:
            written = read
            # What a body does with what it reads is not followed: it may stay for good.
            if node.bodies():
                last.update(dict.fromkeys(read))
        for value in node.outputs:
            if value:
                roots[value] = written
    for value in graph.outputs:
        last.update(dict.fromkeys(roots.get(value, frozenset())))
    return last


def _placed(requests: list[_Request]) -> tuple[Buffer, ...]:
    """Place buffers, largest first, at the lowest offset that is free while they live."""
    done: list[Buffer] = []
    for request in sorted(requests):
        nbytes = -request.negated_bytes
        alive = [b for b in done if b.step <= request.last and request.step <= b.last]
        alive.sort(key=lambda b: b.offset)
        offset = _first_gap(alive, _aligned(nbytes))
        done.append(Buffer(request.step, request.nth, nbytes, request.last, offset))
    return tuple(done)


def _first_gap(alive: list[Buffer], size: int) -> int:
    """Return the lowest offset where ``size`` bytes are free, of buffers in order of offset."""
    offset = 0
    for other in alive:
        if offset + size <= other.offset:
            break
        offset = max(offset, other.end)
    return offset
