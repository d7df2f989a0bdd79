"""The ledger of a backend that carries out what it was asked to, op by op."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from octavo.core.contract.candidate import OpParameters
from octavo.core.values.capability import Capability
from octavo.core.values.graph import ModelView, Op
from octavo.core.values.ledger import Applied
from octavo.core.values.scheme import FLOAT


def ledger_lines(
    view: ModelView,
    parameters: Mapping[str, OpParameters],
    offered: Capability,
    *,
    carriers: Collection[str] = (),
    reason: Callable[[Op], str] = lambda op: op.out_of_reach,
) -> dict[str, Applied]:
    """Return what becomes of each op where each is carried out as it was decided.

    A runtime that decides otherwise is asked what it runs, and its answer goes before.

    Args:
        view: The model.
        parameters: What was decided; other ops stay float.
        offered: Says how each scheme is carried out.
        carriers: Ops that move the codes of their input as they are in this candidate.
        reason: What a reader must know of an op: why it stays float, or how it is carried out.
    """
    lines: dict[str, Applied] = {}
    for op in view.ops:
        given = parameters.get(op.name)
        if op.name in carriers:
            lines[op.name] = Applied(FLOAT, FLOAT, "codes", reason(op))
        elif given is None or given.scheme.is_float:
            lines[op.name] = Applied(FLOAT, FLOAT, reason=reason(op))
        else:
            realization = offered.realization(op, given.scheme)
            lines[op.name] = given.line(realization, reason(op))
    return lines
