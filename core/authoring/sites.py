"""What every describer of a graph does: fuse what lies behind a product into its op, note who
shares a weight, count products, name what has no name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Generic, NamedTuple, TypeVar

from octavo.core.values.graph import Op, Weight

Node = TypeVar("Node")

Shape = Sequence[int | None] | None
"""Lengths of axes, None for one that is not known; None as a whole where the rank is not."""


class Absorbed(NamedTuple, Generic[Node]):
    """A node that became part of the op before it.

    Attributes:
        node: The node.
        value: What it writes, which is the op's output now.
        what: The bias that it adds, or the activation that it applies.
    """

    node: Node
    value: str
    what: str


class Flow(Generic[Node]):
    """Which node of a graph reads which value, by names.

    A describer goes through :attr:`nodes` in order, passes by those in :attr:`absorbed`, and asks
    for what lies behind a product.

    Args:
        nodes: In execution order; they must be hashable.
        kind: The node's type, in the runtime's own words.
        reads: Names of all values that a node reads, constants too, in its own order.
        writes: Names of the values that it writes.
        outputs: Names of the values that leave the graph: nothing is absorbed over them.

    Attributes:
        nodes: In execution order.
        absorbed: Nodes that are part of an op before them.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        kind: Callable[[Node], str],
        reads: Callable[[Node], Sequence[str]],
        writes: Callable[[Node], Sequence[str]],
        outputs: Iterable[str],
    ) -> None:
        self.nodes = tuple(nodes)
        self.absorbed: set[Node] = set()
        self._kind = kind
        self._reads = reads
        self._writes = writes
        self._outputs = frozenset(outputs)
        self._producers: dict[str, Node] = {}
        self._readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in writes(node):
                self._producers[value] = node
            # Once for each time that it is read: a node may add a value to itself.
            for value in reads(node):
                self._readers.setdefault(value, []).append(node)

    def producer(self, value: str, *kinds: str) -> Node | None:
        """Return the node that writes a value, if it is of one of these kinds."""
        node = self._producers.get(value)
        return node if node is not None and self._is_of(node, kinds) else None

    def only_reader(self, value: str, *kinds: str) -> Node | None:
        """Return the node that alone reads a value, once, if it is of one of these kinds.

        None for a value that leaves the graph: what is fused over it could not be seen any more.
        """
        readers = self._readers.get(value, ())
        if len(readers) != 1 or value in self._outputs:
            return None
        return readers[0] if self._is_of(readers[0], kinds) else None

    def absorb_bias(
        self, value: str, kinds: Sequence[str], is_bias: Callable[[str], bool]
    ) -> Absorbed[Node] | None:
        """Take in a sum with a bias that alone reads a product.

        Args:
            value: What the product writes.
            kinds: Types of nodes that add.
            is_bias: True for the name of a constant that can be one (:func:`is_bias_shape`).
        """
        node = self.only_reader(value, *kinds)
        if node is None:
            return None
        others = [name for name in self._reads(node) if name != value]
        if len(others) != 1 or not is_bias(others[0]):
            return None
        return self._taken(node, others[0])

    def absorb_activation(
        self, value: str, kinds: Mapping[str, str]
    ) -> Absorbed[Node] | None:
        """Take in an activation that alone reads a value.

        Args:
            value: What the op writes until now.
            kinds: Type of node -> the activation's name in the op's attributes.
        """
        node = self.only_reader(value, *kinds)
        return None if node is None else self._taken(node, kinds[self._kind(node)])

    def _taken(self, node: Node, what: str) -> Absorbed[Node]:
        self.absorbed.add(node)
        return Absorbed(node, self._writes(node)[0], what)

    def _is_of(self, node: Node, kinds: Sequence[str]) -> bool:
        return not kinds or self._kind(node) in kinds


def is_bias_shape(shape: Sequence[int], channels: int, axis: int, rank: int) -> bool:
    """True for the shape of a constant of one number per output channel.

    Args:
        shape: The constant's.
        channels: How many output channels the product has.
        axis: Where they lie in its result; negative counts from the end.
        rank: The result's number of axes. A constant of more axes would add some to it.
    """
    if len(shape) > rank:
        return False
    wanted = [1] * rank
    wanted[axis] = channels
    padded = [*([1] * (rank - len(shape))), *shape]
    return padded == wanted


def shared_weights(ops: Iterable[Op]) -> tuple[Op, ...]:
    """Return ops that know which others use their weight: those that name it alike."""
    kept = tuple(ops)
    users: dict[str, list[str]] = {}
    for op in kept:
        if op.weight is not None:
            users.setdefault(op.weight.name, []).append(op.name)
    return tuple(_sharing(op, users) for op in kept)


def _sharing(op: Op, users: Mapping[str, Sequence[str]]) -> Op:
    if op.weight is None or len(users[op.weight.name]) == 1:
        return op
    others = tuple(name for name in users[op.weight.name] if name != op.name)
    return replace(op, weight=replace(op.weight, shared_with=others))


def macs(kind: str, weight: Weight | None, reads: Shape, writes: Shape) -> int | None:
    """Return an op's multiply-accumulates for one sample, which is the first axis.

    Args:
        kind: ``linear``, ``conv``, ``conv_transpose`` or ``matmul``; others have none.
        weight: In the core's layout; None for ``matmul``.
        reads: Shape of its first activation, with the channels of a convolution second.
        writes: Likewise of its output.

    Returns:
        None where a shape, or how many a kind has, is unknown.
    """
    if kind == "conv_transpose":
        # Each number of the input meets the whole kernel.
        pixels = _elements(reads, 2)
        return None if weight is None or pixels is None else pixels * weight.size
    written = _elements(writes, 1)
    depth: int | None = None
    if kind in ("linear", "conv") and weight is not None:
        depth = weight.size // max(1, weight.shape[weight.channel_axis])
    elif kind == "matmul" and weight is None:
        depth = reads[-1] if reads else None
    return None if written is None or depth is None else written * depth


def _elements(shape: Shape, start: int) -> int | None:
    """Return how many elements the axes from ``start`` on count; None if one is unknown."""
    if shape is None:
        return None
    known = [length for length in shape[start:] if length is not None]
    return prod(known) if len(known) == len(shape[start:]) else None


def unique_names(names: Iterable[str]) -> list[str]:
    """Return names of which none occurs twice, the same ones in any process.

    The first keeps its name, later ones are numbered: ``fc``, ``fc_2``, ``fc_3``. Number what a
    model gives no name by its type (``add``, ``add_2``): a runtime's own numbers may count through
    all models of a process.
    """
    wanted = list(names)
    taken = set(wanted)
    counts: dict[str, int] = {}
    found: list[str] = []
    for name in wanted:
        if name in counts:
            made = name
            while made in taken:
                counts[name] += 1
                made = f"{name}_{counts[name]}"
            taken.add(made)
        else:
            counts[name] = 1
            made = name
        found.append(made)
    return found
