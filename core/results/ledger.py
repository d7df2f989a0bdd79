"""The ledger and the trials of a result: mappings and tuples that print as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from octavo.core.report.ledger_tables import ledger_by_type, ledger_table, legend_table
from octavo.core.report.tables import TextTable, plain
from octavo.core.report.trial_tables import trials_table
from octavo.core.values.ledger import Applied
from octavo.core.values.trial import Trial

MOST = 40
"""Rows that are printed where nobody asked for all."""


class Ledger(dict[str, Applied]):
    """Op -> what was requested and what runs. A dictionary that prints as a table.

    Args:
        lines: The lines, in the order of the model.
        types: Op -> its type, where that is known.
    """

    def __init__(
        self,
        lines: Mapping[str, Applied] | Iterable[tuple[str, Applied]] = (),
        types: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(lines)
        self.types = dict(types or {})

    def table(self) -> TextTable:
        """Return one row an op."""
        return ledger_table(self)

    def by_type(self) -> TextTable:
        """Return a few rows: how many ops of a type run in which scheme, and why."""
        return ledger_by_type(self, self.types)

    def legend(self) -> TextTable | None:
        """Return what the short names of schemes stand for; None where nothing is quantized."""
        return legend_table(self)

    def __repr__(self) -> str:
        first = dict(list(self.items())[:MOST])
        left = len(self) - len(first)
        told = plain(ledger_table(first))
        if not left:
            return told
        return f"{told}\nand {left} further ops: print(result.ledger.table())"

    def _repr_html_(self) -> str:
        """Return the whole table for a notebook."""
        return self.table()._repr_html_()

    def __reduce__(self) -> tuple[Any, ...]:
        return Ledger, (dict(self), self.types)


class Trials(tuple[Trial, ...]):
    """Trials in their order. A tuple that prints as a table."""

    __slots__ = ()

    def table(self) -> TextTable:
        """Return one row a trial."""
        return trials_table(f"{len(self)} trials", self)

    def __repr__(self) -> str:
        first = self[:MOST]
        left = len(self) - len(first)
        told = plain(trials_table(f"{len(self)} trials", first))
        if not left:
            return told
        return f"{told}\nand {left} further trials: print(result.trials.table())"

    def _repr_html_(self) -> str:
        """Return the whole table for a notebook."""
        return self.table()._repr_html_()
