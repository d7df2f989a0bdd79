"""The front of a result: its points of size against loss, of which a user takes any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.core.errors import ConfigError, MissingFramework
from octavo.core.report import text
from octavo.core.report.front_table import front_table
from octavo.core.report.tables import TextTable, plain
from octavo.core.scoring.front import FrontPoint

MOST = 40
"""Rows that are printed where nobody asked for all."""


class Front(tuple[FrontPoint, ...]):
    """Points by size, the smallest first. A tuple that prints as a table.

    Trials, the least losses that are believed of other sizes, and one width for every op.
    """

    __slots__ = ()

    @property
    def unbeaten(self) -> Front:
        """Those that no other point beats in size and loss."""
        return Front(point for point in self if point.unbeaten)

    @property
    def uniform(self) -> Front:
        """One width for every op: what a search is to be compared with."""
        return Front(point for point in self if point.kind == "uniform")

    def at(self, *, size: float | None = None, bits: float | None = None) -> FrontPoint:
        """Return the point of least believed loss within a limit.

        Args:
            size: At most so large: a share of the float model's file where it is at most 1, else
                bytes.
            bits: At most so many bits of a weight, over the ops that may be quantized.

        Raises:
            ConfigError: If not one of the two is given, or no point is so small.
        """
        if (size is None) == (bits is None):
            raise ConfigError("front.at takes one limit: size= or bits=")
        name, limit, figure = _limit(size, bits)
        # Sums of floats round: what is a limit to the last digit keeps it.
        fitting = [p for p in self if figure(p) <= limit * (1 + 1e-9)]
        known = [p for p in fitting if p.loss is not None]
        if known:
            return min(known, key=lambda p: (p.loss, p.size))
        if fitting:
            return max(fitting, key=figure)
        if not self:
            raise ConfigError("this front has no points: no trial was completed")
        least = min(map(figure, self))
        raise ConfigError(
            f"no point of the front has {name} {limit:g} or less; the smallest has {least:.6g}"
        )

    def table(self) -> TextTable:
        """Return one row a point."""
        return front_table(self)

    def to_frame(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row a point.

        Raises:
            MissingFramework: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingFramework(
                "front.to_frame needs pandas: pip install pandas; front.table() needs nothing"
            ) from error
        return pandas.DataFrame([_row(point) for point in self])

    def to_json(self) -> list[dict[str, Any]]:
        """Return a JSON-ready list, as octavo.json keeps it."""
        return [point.to_json() for point in self]

    def __repr__(self) -> str:
        left = len(self) - MOST
        told = plain(front_table(self[:MOST]))
        if left <= 0:
            return told
        return f"{told}\nand {left} further points: print(result.front.table())"

    def _repr_html_(self) -> str:
        """Return the whole table for a notebook."""
        return self.table()._repr_html_()


def _limit(
    size: float | None, bits: float | None
) -> tuple[str, float, Callable[[FrontPoint], float]]:
    """Return the name of a limit, the limit, and what of a point it limits."""
    if bits is not None:
        return "bits", bits, lambda point: point.bits
    assert size is not None
    if size <= 1:
        return "a share of the size of", size, lambda point: point.share
    return "a size of", size, lambda point: point.size


def _row(point: FrontPoint) -> dict[str, Any]:
    """Return a point's figures by the names of their columns."""
    return {
        "kind": point.kind,
        "size_bytes": point.size,
        "size_ratio": point.share,
        "bits": point.bits,
        "loss": point.loss,
        "trial": point.trial,
        "passed": point.passed,
        "unbeaten": point.unbeaten,
        **point.scores,
        "recipe": point.recipe.digest,
        "recovery": text.learned(point.recipe),
    }


__all__ = ["Front"]
