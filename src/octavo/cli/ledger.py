"""The ledger as a table: what was asked of each op and what runs."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from octavo.core.values.ledger import Applied

from .console import table


def ledger_table(ledger: Mapping[str, Applied]) -> Table:
    """Return one row an op, in the ledger's order."""
    rows = []
    for name, line in ledger.items():
        rows.append((name, line.requested, _applied(line), _by(line), line.reason))
    return table(("op", "requested", "applied", "by", "remark"), rows)


def _applied(line: Applied) -> Text:
    if line.carries_codes:
        return Text("carries codes")
    return (
        Text("as requested", "green")
        if line.honoured
        else Text(str(line.applied), "yellow")
    )


def _by(line: Applied) -> str:
    """Return what carries an op out: a kernel, a simulation, its input's codes, or float
    arithmetic."""
    if line.carries_codes:
        return "codes"
    return "float" if line.applied.is_float else line.realization
