"""Pieces that rewrites share: a node put before another, and constants made of constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import Graph, Node, Value

from octavo.adapters.onnx.prepare.constants import add_initializer, constant, take_over
from octavo.adapters.onnx.prepare.scopes import owner


def before(
    node: Node,
    op_type: str,
    inputs: Sequence[Value | None],
    tag: str,
    attributes: Mapping[str, Any] | None = None,
) -> Value:
    """Put a standard operator right before a node.

    Returns:
        Its result, of the type of its first input and of unknown shape.
    """
    name = f"{node.name}_{tag}"
    made = ir.node(op_type, list(inputs), dict(attributes or {}), name=name)
    result = made.outputs[0]
    first = inputs[0]
    result.name = f"{name}_output"
    result.type = first.type if first is not None else None
    owner(node).insert_before(node, [made])
    return result


def replace_with(node: Node, value: Value) -> None:
    """Let a value be read wherever a node's was, and remove the node."""
    take_over(value, node.outputs[0])
    owner(node).remove(node, safe=True)


def swap_last(rank: int) -> list[int]:
    """Return the permutation that swaps the last two axes."""
    return [*range(rank - 2), rank - 1, rank - 2]


class Layouts:
    """Constants in other layouts, each made once.

    One whose source nobody reads any more takes over its name in the end, so that a weight is
    called what the model calls it.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Value, str], Value] = {}
        self._sources: dict[Value, str] = {}

    def of(
        self,
        node: Node,
        source: Value,
        tag: str,
        change: Callable[[np.ndarray], np.ndarray],
    ) -> Value:
        """Return ``change(source)`` as an initializer, for a node to read."""
        key = (source, tag)
        made = self._made.get(key)
        if made is None:
            array = constant(source)
            assert array is not None
            name = f"{source.name}_{tag}"
            changed = change(array)
            made = add_initializer(owner(node), name, changed)
            self._made[key] = made
            self.note(made, source)
        return made

    def note(self, made: Value, source: Value) -> None:
        """Remember that a constant holds the numbers of another one."""
        self._sources[made] = self._sources.get(source, source.name or "")

    def name(self, graph: Graph) -> None:
        """Give what took the place of a constant its name."""
        for made, name in self._sources.items():
            # As long as somebody reads the source, it keeps its name.
            if made.name in graph.initializers and name not in graph.initializers:
                made.name = name
