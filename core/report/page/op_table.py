"""The report's table of ops: what was asked, what runs, and what it costs, op by op."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from octavo.core.report import text
from octavo.core.report.model import OpLine, ReportData
from octavo.core.values.layers import REST, Layer
from octavo.core.values.scheme import OpScheme

PRINTED = 40
"""Rows that go to paper: the largest, slowest and most sensitive. On the screen all are there."""

Number = float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure or text of an op.

    Attributes:
        text: What is read.
        key: What it is sorted by; empty where the text itself does.
    """

    text: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table.

    Attributes:
        head: Its heading.
        is_number: Whether it holds figures.
        cell: What it holds of an op.
        told: What the figures are, where the heading does not say it all.
        style: Class of its cells, where they are not figures: ``s`` of short names of schemes,
            ``why`` of sentences.
    """

    head: str
    is_number: bool
    cell: Callable[[OpLine, Layer], Cell]
    told: str = ""
    style: str = ""

    @property
    def kind(self) -> str:
        """The class of its cells."""
        return "n" if self.is_number else self.style


@dataclass(frozen=True, slots=True)
class Row:
    """One op.

    Attributes:
        index: Its place in the model.
        name: Its name.
        cells: One for each column.
        is_printed: Whether it goes to paper.
    """

    index: int
    name: str
    cells: Sequence[Cell]
    is_printed: bool

    def with_columns(self, columns: Sequence[Column]) -> Sequence[tuple[Column, Cell]]:
        """Return each cell with its column."""
        return list(zip(columns, self.cells, strict=True))


BLANK = Cell("")
"""A figure that is not known: the page sorts it behind all that are."""


@dataclass(frozen=True)
class OpTable:
    """The ops of the best model, with those columns that any op has something in.

    Attributes:
        data: The run.
        names: Scheme -> its short name on this page.
    """

    data: ReportData
    names: Mapping[OpScheme, str]

    @cached_property
    def _written(self) -> Mapping[str, str]:
        """Scheme, written out -> its short name."""
        return {str(scheme): short for scheme, short in self.names.items()}

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """What is known of any op."""
        kind = Column("type", False, lambda op, layer: Cell(op.type))
        at = Column("sensitivity at", False, self._sensitivity_at, style="s")
        loss, *figures = _figure_columns(self.data)
        every = (kind, *self._scheme_columns(), loss, at, *figures, *self._remarks())
        return tuple(column for column in every if self._is_used(column))

    def _is_used(self, column: Column) -> bool:
        return any(column.cell(op, self._layer(op)).text for op in self.data.ops)

    def _layer(self, op: OpLine) -> Layer:
        return self.data.layers.get(op.name, Layer())

    def _sensitivity_at(self, op: OpLine, layer: Layer) -> Cell:
        """Return the scheme that a sensitivity is of, where the op does not take that one."""
        if layer.sensitivity is None or layer.scheme == str(op.line.requested):
            return Cell("")
        return Cell(self._written.get(layer.scheme, layer.scheme))

    def _scheme_columns(self) -> tuple[Column, ...]:
        return (
            Column("asked", False, lambda op, layer: self._asked(op), style="s"),
            Column("runs", False, lambda op, layer: self._runs(op), style="s"),
        )

    def _remarks(self) -> tuple[Column, ...]:
        return (
            Column("by", False, lambda op, layer: Cell(_realization(op))),
            Column(
                "remark", False, lambda op, layer: Cell(op.line.reason), style="why"
            ),
        )

    def _asked(self, op: OpLine) -> Cell:
        if op.line.carries_codes:
            return Cell("-")
        return self._named(op.line.requested)

    def _runs(self, op: OpLine) -> Cell:
        if op.line.carries_codes:
            return Cell(op.applied)
        if op.line.honoured and not op.line.applied.is_float:
            return Cell("as asked")
        return self._named(op.line.applied)

    def _named(self, scheme: OpScheme) -> Cell:
        return Cell(self.names.get(scheme, str(scheme)))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All ops in the model's order."""
        printed = self._printed
        rows = []
        for index, op in enumerate(self.data.ops):
            layer = self._layer(op)
            cells = [column.cell(op, layer) for column in self.columns]
            rows.append(Row(index, op.name, cells, index in printed))
        return tuple(rows)

    @property
    def left_out_of_print(self) -> int:
        """How many rows do not go to paper."""
        return max(0, len(self.data.ops) - PRINTED)

    @cached_property
    def _printed(self) -> frozenset[int]:
        """The places of those that rank highest in bytes, time, sensitivity or weights."""
        count = len(self.data.ops)
        best_rank = [count] * count
        for figure in (_bytes_of, _time_of, _sensitivity_of):
            values = [figure(op, self._layer(op)) for op in self.data.ops]
            order = sorted(range(count), key=lambda i, v=values: (-v[i], i))  # type: ignore[misc]
            for rank, index in enumerate(order):
                if values[index] > 0:
                    best_rank[index] = min(best_rank[index], rank)
        chosen = sorted(range(count), key=lambda index: (best_rank[index], index))
        return frozenset(chosen[:PRINTED])

    @cached_property
    def sums(self) -> tuple[str, ...]:
        """What all ops take together, where that is known."""
        ops = _told("all ops together", [self._layer(op) for op in self.data.ops])
        rest = self.data.layers.get(REST)
        if not ops or rest is None:
            return tuple(ops)
        return (*ops, *_told("what belongs to none of them", [rest]))


def _told(what: str, layers: Sequence[Layer]) -> list[str]:
    """Return what some ops take in the float model and as they run; empty where it is not known."""
    found = []
    in_float = _sum([layer.float_bytes for layer in layers])
    own = _sum([layer.bytes for layer in layers])
    if in_float or own:
        found.append(f"{text.size(in_float)} → {text.size(own)}")
    in_float = _sum([layer.float_ms for layer in layers])
    own = _sum([layer.ms for layer in layers])
    if in_float or own:
        found.append(f"{text.latency(in_float)} → {text.latency(own)} a call")
    return [f"{what}: {', '.join(found)}"] if found else []


def _bytes_of(op: OpLine, layer: Layer) -> float:
    return _known(layer.float_bytes or layer.bytes or op.parameters)


def _time_of(op: OpLine, layer: Layer) -> float:
    return _known(layer.ms or layer.float_ms)


def _sensitivity_of(op: OpLine, layer: Layer) -> float:
    return _known(layer.sensitivity)


def _known(figure: Number) -> float:
    return figure if figure is not None and math.isfinite(figure) else 0.0


def _sum(figures: Sequence[Number]) -> float:
    return sum(_known(figure) for figure in figures)


def _realization(op: OpLine) -> str:
    if op.line.carries_codes:
        return "codes"
    return "float" if op.is_float else op.line.realization


def _figure_columns(data: ReportData) -> tuple[Column, ...]:
    kinds = {layer.kind for layer in data.layers.values() if layer.kind}
    kind = ", ".join(sorted(kinds)).replace("_", " ")
    loss = "the loss when this op alone is quantized"
    return (
        Column(
            "sensitivity",
            True,
            lambda op, layer: _number(layer.sensitivity),
            f"{loss}: {kind}" if kind else loss,
        ),
        Column(
            "weight error",
            True,
            lambda op, layer: _percent(layer.error),
            "squared error of the quantized weight as a share of its own square",
        ),
        Column("float time", True, lambda op, layer: _time(layer.float_ms)),
        Column("time", True, lambda op, layer: _time(layer.ms), "of a call"),
        Column("float bytes", True, lambda op, layer: _size(layer.float_bytes)),
        Column("bytes", True, lambda op, layer: _size(layer.bytes), "in the file"),
        Column("weights", True, lambda op, layer: _count(op.parameters)),
    )


def _count(value: int) -> Cell:
    return Cell(f"{value:,}") if value else BLANK


def _figure(value: Number, worded: Callable[[float], str]) -> Cell:
    """Return a figure as it reads; what is no number is said as it is."""
    if value is None:
        return BLANK
    if not math.isfinite(value):
        return Cell(f"{value}")
    # What it is sorted by stands beside it where the text has a unit.
    words = worded(value)
    return Cell(words, f"{value:.6g}" if " " in words else "")


def _number(value: Number) -> Cell:
    return _figure(value, lambda number: f"{number:.3g}")


def _percent(value: Number) -> Cell:
    return _figure(value, lambda number: f"{100 * number:.3g} %")


def _time(value: Number) -> Cell:
    return _figure(value, text.latency)


def _size(value: Number) -> Cell:
    return _figure(value, text.size)
