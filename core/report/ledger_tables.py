"""The ledger as tables: what was asked of each op and what runs, op by op and by type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from octavo.core.values.ledger import Applied
from octavo.core.values.scheme import OpScheme

from .names import CARRIES_CODES, distinct, legend, running
from .tables import TextTable, table

_TOLD = 3
"""Reasons that a row of the short form names."""


def ledger_table(ledger: Mapping[str, Applied]) -> TextTable:
    """Return one row an op, in the ledger's order."""
    names = distinct(_schemes(ledger))
    rows = []
    for name, line in ledger.items():
        applied = Text(names[running(line)], "yellow")
        if line.carries_codes:
            applied = Text(CARRIES_CODES)
        elif line.honoured:
            applied = Text("as requested", "green")
        requested = names[line.requested]
        rows.append((name, requested, applied, carried_out_by(line), line.reason))
    columns = ("op", "requested", "applied", "by", "remark")
    return table(columns, rows, least=("remark", "requested"))


def ledger_by_type(
    ledger: Mapping[str, Applied], types: Mapping[str, str] | None = None
) -> TextTable:
    """Return the ledger in a few lines: how many ops of a type run in which scheme, and why.

    Args:
        ledger: Op -> its line.
        types: Op -> its type; where they are not known, all ops are one type.
    """
    known = types or {}
    names = distinct(_schemes(ledger))
    groups: dict[tuple[str, str, str], list[Applied]] = {}
    for op, line in ledger.items():
        scheme = CARRIES_CODES if line.carries_codes else names[running(line)]
        key = (known.get(op, "op"), scheme, carried_out_by(line))
        groups.setdefault(key, []).append(line)
    rows = []
    for (kind, scheme, by), lines in groups.items():
        rows.append((kind, len(lines), scheme, by, _reasons(lines)))
    columns = ("type", "ops", "runs as", "by", "why")
    return table(columns, rows, right=("ops",), least=("why",))


def _schemes(ledger: Mapping[str, Applied]) -> Iterator[OpScheme]:
    """Yield the schemes that the tables name."""
    for line in ledger.values():
        yield line.requested
        yield running(line)


def _reasons(lines: Sequence[Applied]) -> str:
    """Return the distinct reasons of some lines, the first few."""
    reasons = list(dict.fromkeys(line.reason for line in lines if line.reason))
    told = "; ".join(reasons[:_TOLD])
    left = len(reasons) - _TOLD
    return f"{told}; and {left} further reasons" if left > 0 else told


def carried_out_by(line: Applied) -> str:
    """Return what carries an op out: a kernel, a simulation, its input's codes, or float
    arithmetic."""
    if line.carries_codes:
        return "codes"
    return "float" if line.applied.is_float else line.realization


def legend_table(ledger: Mapping[str, Applied]) -> TextTable | None:
    """Return what the short names of a ledger stand for; None where nothing is quantized."""
    rows = legend(_schemes(ledger))
    return table(("short", "in full"), rows) if rows else None
