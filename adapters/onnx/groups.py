"""Groups: ops that take one decision, and channel scales that can be traded without changing the model's function."""

from __future__ import annotations

import onnx_ir as ir

from octavo.core.graph import Group, Op


def find_groups(graph: ir.Graph, ops: tuple[Op, ...]) -> tuple[Group, ...]:
    """Return the groups of a graph.

    ``scheme``: ops with a tied weight. ``rescale``: see :mod:`.rescaling`.
    """
    del graph
    tied: dict[str, list[str]] = {}
    for op in ops:
        if op.weight is not None and op.weight.shared_with:
            tied.setdefault(op.weight.name, []).append(op.name)
    return tuple(Group(f"tied:{weight}", "scheme", tuple(members)) for weight, members in tied.items())
