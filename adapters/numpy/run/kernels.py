"""The kernels of a session's nodes: made once, and shared by every candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from octavo.adapters.numpy.graph import Graph, Node
from octavo.adapters.numpy.kernels.fallback import native, reference_kernel
from octavo.adapters.numpy.kernels.parallel import available
from octavo.adapters.numpy.kernels.registry import Build, Kernel, kernel

Compile = Callable[[Graph], Kernel]
"""Compiles the body of a node to ``run(inputs, captured) -> outputs``."""


class Made(NamedTuple):
    """A node's kernel, and whether it takes ``empty=``."""

    kernel: Kernel
    allocates: bool


class Kernels:
    """Makes kernels.

    Those of a session's own nodes are kept, so that every candidate shares its packed float
    weights.

    Args:
        scratch: Upper bound of a kernel's scratch memory per thread, in bytes.
        threads: Threads that share the rows of one operator; 0 for all cores.
    """

    def __init__(self, scratch: int, threads: int = 0) -> None:
        self.scratch = scratch
        self.threads = threads
        # By identity. The node is held too: its number would be another's once it is gone.
        self._kept: dict[int, Node] = {}
        self._made: dict[int, Made] = {}

    def keep(self, nodes: Iterable[Node]) -> None:
        """Keep the kernels of these nodes.

        A candidate's own nodes are not kept: they go when it goes.
        """
        for node in nodes:
            self._kept.setdefault(id(node), node)

    def of(self, node: Node, graph: Graph, compile_body: Compile) -> Made:
        """Return a node's kernel."""
        number = id(node)
        made = self._made.get(number)
        if made is None:
            made = self._make(node, graph, compile_body)
            if number in self._kept:
                self._made[number] = made
        return made

    def _make(self, node: Node, graph: Graph, compile_body: Compile) -> Made:
        if not native(node, graph.opset):
            return Made(reference_kernel(node, graph.opset), False)
        initializers = graph.initializers
        constants = {v: initializers[v] for v in node.inputs if v in initializers}
        cores = available()
        threads = min(self.threads, cores) if self.threads else cores
        build = Build(node, constants, graph.opset, self.scratch, threads, compile_body)
        return Made(*kernel(build))
