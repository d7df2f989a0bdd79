"""The table of operators: name and operator-set version -> kernel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.core.errors import ModelError, nearest

Kernel = Callable[..., Any]
"""Takes a node's inputs in order, None where one is left out; returns one array or several."""


@dataclass(frozen=True, slots=True)
class Build:
    """What a kernel's factory knows.

    Attributes:
        node: The node.
        constants: Arrays of those inputs that are initializers.
        opset: The graph's operator-set version.
        scratch: Upper bound of the kernel's scratch memory, in bytes, per thread.
        threads: Threads that may share its rows.
        body: Compiles a body (If, Loop, Scan) to ``run(inputs, captured) -> outputs``, where
            ``captured`` are the values that it reads from around it, by name.
    """

    node: Node
    constants: Mapping[str, Array] = field(default_factory=dict)
    opset: int = 21
    scratch: int = 1 << 20
    threads: int = 1
    body: Callable[[Graph], Kernel] | None = None

    def constant(self, index: int) -> Array | None:
        """Return the array of input ``index`` if it is an initializer, else None."""
        inputs = self.node.inputs
        return self.constants.get(inputs[index]) if index < len(inputs) else None

    def get(self, attribute: str, default: Any) -> Any:
        """Return an attribute."""
        return self.node.attributes.get(attribute, default)


Factory = Callable[[Build], Kernel]
"""Prepares the kernel of one node."""


@dataclass(frozen=True, slots=True)
class _Entry:
    since: int
    build: Factory
    allocates: bool


_TABLE: dict[str, list[_Entry]] = {}


def compiled(
    op: str, since: int = 1, *, empty: bool = False
) -> Callable[[Factory], Factory]:
    """Register a factory that prepares a kernel (packs weights, plans geometry) once per node.

    Args:
        op: The operator's name.
        since: The first operator-set version with this meaning.
        empty: The kernel takes ``empty=``, a stand-in for numpy.empty, and makes its results with
            it and nothing else: the memory plan then knows them, and that they are no views of the
            inputs.
    """

    def register(build: Factory) -> Factory:
        _insert(op, _Entry(since, build, empty))
        return build

    return register


def operator(
    *ops: str, since: int = 1, empty: bool = False
) -> Callable[[Kernel], Kernel]:
    """Register a plain function: inputs positional, attributes as keyword-only parameters.

    Args:
        ops: Operator names.
        since: The first operator-set version with this meaning.
        empty: As for :func:`compiled`.
    """

    def register(function: Kernel) -> Kernel:
        build = _factory_of(function)
        for op in ops:
            _insert(op, _Entry(since, build, empty))
        return function

    return register


def _factory_of(function: Kernel) -> Factory:
    """Return what binds a node's attributes to a function, and refuses those it has not."""
    parameters = inspect.signature(function).parameters.values()
    named = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"empty"}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def build(context: Build) -> Kernel:
        node = context.node
        attributes = dict(node.attributes)
        unknown = [] if takes_any else [a for a in attributes if a not in named]
        if unknown:
            raise ModelError(
                f"node {node.name!r} ({node.op}) has attribute {unknown[0]!r}, which the NumPy "
                f"backend does not know{nearest(unknown[0], named)}"
            )
        return partial(function, **attributes) if attributes else function

    return build


def _insert(op: str, entry: _Entry) -> None:
    rows = _TABLE.setdefault(op, [])
    rows.append(entry)
    rows.sort(key=lambda e: e.since)


def supported(op: str, opset: int) -> bool:
    """True if there is a kernel of ``op`` for this operator-set version."""
    return any(e.since <= opset for e in _TABLE.get(op, ()))


def operators() -> tuple[str, ...]:
    """Return the names of all operators that have a kernel."""
    return tuple(sorted(_TABLE))


def _entry(node: Node, opset: int) -> _Entry:
    """Return the newest meaning of a node's operator that its operator set has."""
    rows = [e for e in _TABLE.get(node.op, ()) if e.since <= opset]
    if not rows:
        raise ModelError(
            f"node {node.name!r}: the NumPy backend has no operator {node.op!r} at operator set "
            f"{opset}{nearest(node.op, _TABLE)}"
        )
    return rows[-1]


def kernel(context: Build) -> tuple[Kernel, bool]:
    """Return a node's kernel, and whether it takes ``empty=``.

    Raises:
        ModelError: If there is none, or an attribute is unknown.
    """
    entry = _entry(context.node, context.opset)
    return entry.build(context), entry.allocates
