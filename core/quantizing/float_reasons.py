"""Why an op runs in float."""

from __future__ import annotations

from octavo.core.contract.adapter import Opened
from octavo.core.values.graph import Op


def why_fixed(op: Op, opened: Opened) -> str:
    """Return why an op stays float whatever the recipe."""
    if op.out_of_reach:
        return op.out_of_reach
    offers = opened.capability.offers.get(op.type, ())
    if not offers:
        return f"{opened.name} has no low-precision kernel for {op.type}"
    if len(opened.capability.for_op(op)) > 1:
        return "kept in float by the rules, or by an op that decides with it"
    asked = (offer.refuses(op) for offer in offers if offer.refuses is not None)
    refusals = dict.fromkeys(filter(None, asked))
    if refusals:
        return "; ".join(refusals)
    return f"{opened.name} only simulates schemes for {op.type} (simulated = true admits them)"


def why_float(op: Op, opened: Opened) -> str:
    """Return why an op runs in float whose line of the ledger does not say so."""
    if not op.out_of_reach and len(opened.capability.for_op(op)) > 1:
        return "the recipe keeps it in float"
    return why_fixed(op, opened)
