"""Elementwise ops are worth integers only where integers come to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from octavo.core.values.graph import Op

_SOURCES = frozenset({"conv", "conv_transpose", "avg_pool"})
_COMPANIONS = frozenset({"add", "sub", "mul", "mean", "concat", "softmax", "sigmoid"})
_MOVERS = frozenset({"reshape", "max_pool", "resize", "relu"})
"""Types whose results are integers where their inputs are."""

KEPT = "its neighbours compute in float"
"""Why an elementwise op among float ops has no scheme to choose."""


def keep_companions_float(
    ops: Iterable[Op], movers: Collection[str] = _MOVERS
) -> tuple[Op, ...]:
    """Return ops in which elementwise ones that no convolution feeds are out of reach.

    One alone in integers costs a rounding of each input and saves nothing; and in transformers the
    residual stream, which has outliers, loses accuracy by it (measured on ONNX Runtime 1.32 and on
    OpenVINO 2026.4).

    Args:
        ops: In execution order, as ``describe()`` lists them.
        movers: Types whose results are integers where their inputs are.
    """
    integers: set[str] = set()
    found = []
    for op in ops:
        comes = not integers.isdisjoint(op.inputs)
        if op.type in _COMPANIONS and not op.out_of_reach and not comes:
            op = replace(op, out_of_reach=KEPT)
        is_companion = op.type in _COMPANIONS or op.type in movers
        if op.type in _SOURCES or (is_companion and comes):
            integers.update(op.outputs)
        found.append(op)
    return tuple(found)
