"""Names, sharers and costs of ops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from octavo.plugin import Op, Weight

Shape = Sequence[int | None] | None


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
