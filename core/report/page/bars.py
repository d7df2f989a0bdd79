"""The report's bars: the ops of the best model that hold the most bytes, take the most time, or
cost the most accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo.core.report import text
from octavo.core.report.model import OpLine, ReportData
from octavo.core.values.layers import Layer

MOST = 16
"""Bars of a chart at most: so many are read at a glance, and the table has the rest."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One op.

    Attributes:
        row: Its place in the model, which its row in the table is named after.
        name: The op's.
        share: Length of its bar, in percent of the longest.
        float_share: The same of the float model's figure; None where there is none.
        figure: The figure in words.
    """

    row: int
    name: str
    share: float
    float_share: float | None
    figure: str


@dataclass(frozen=True)
class Bars:
    """A chart of ops.

    Attributes:
        name: What makes its ids unique in the page.
        title: What it shows.
        bars: Largest first; equal ones in the order of the model.
        of: How many ops have such a figure.
        note: What the figures are.
    """

    name: str
    title: str
    bars: Sequence[Bar]
    of: int
    note: str

    @property
    def has_float(self) -> bool:
        """True if the float model's figures stand beside the best model's."""
        return any(bar.float_share is not None for bar in self.bars)

    @property
    def part(self) -> str:
        """Which part of the model's ops it shows, in words."""
        if len(self.bars) < self.of:
            return (
                f"The {len(self.bars)} largest of {self.of}; the table of ops has all."
            )
        return ""


Figures = tuple[float | None, float | None]
"""(the best model's figure, the float model's) of one op."""


def op_bars(data: ReportData) -> list[Bars]:
    """Return the charts that a run has figures for."""
    return [
        bars
        for bars in (_bytes(data), _times(data), _sensitivities(data))
        if bars is not None
    ]


def _bytes(data: ReportData) -> Bars | None:
    if any(layer.bytes is not None for layer in data.layers.values()):
        return _bars(
            data,
            ("bytes", "Bytes in the file", "Of parameters, as the files hold them."),
            lambda op, layer: (layer.bytes, layer.float_bytes),
            text.size,
        )
    # Results of earlier versions did not look into the files.
    return _bars(
        data,
        (
            "bytes",
            "Bytes of the weights",
            "Weights times their width; scales are not counted.",
        ),
        lambda op, layer: _by_width(op),
        text.size,
    )


def _by_width(op: OpLine) -> Figures:
    if not op.parameters:
        return None, None
    return op.parameters * op.line.applied.weight_bits / 8, 4.0 * op.parameters


def _times(data: ReportData) -> Bars | None:
    return _bars(
        data,
        (
            "times",
            "Time of a call",
            "Measured op by op, in the same way in both models.",
        ),
        lambda op, layer: (layer.ms, layer.float_ms),
        text.latency,
    )


def _sensitivities(data: ReportData) -> Bars | None:
    kinds = sorted({layer.kind for layer in data.layers.values() if layer.kind})
    measure = f" ({', '.join(kinds).replace('_', ' ')})" if kinds else ""
    note = f"Loss when this op alone is quantized{measure}; less is better."
    firsts = _first_of_units(data)
    return _bars(
        data,
        ("sensitivities", "Sensitivity", note),
        lambda op, layer: (layer.sensitivity if op.name in firsts else None, None),
        lambda value: f"{value:.3g}",
    )


def _first_of_units(data: ReportData) -> frozenset[str]:
    """Return the ops whose sensitivity is shown: of those that decide together, the first."""
    found: dict[str, str] = {}
    for op in data.ops:
        unit = data.layers.get(op.name, Layer()).unit or op.name
        found.setdefault(unit, op.name)
    return frozenset(found.values())


def _bars(
    data: ReportData,
    words: tuple[str, str, str],
    figures: Callable[[OpLine, Layer], Figures],
    worded: Callable[[float], str],
) -> Bars | None:
    """Return the bars of one figure; None where no op has it.

    Args:
        data: The run.
        words: (name, title, note) of the chart.
        figures: The figures of an op.
        worded: How a figure reads.
    """
    found = []
    for row, op in enumerate(data.ops):
        layer = data.layers.get(op.name, Layer())
        own, in_float = (_finite(figure) for figure in figures(op, layer))
        if own is not None or in_float is not None:
            found.append((row, op.name, own, in_float))
    largest_first = sorted(found, key=lambda f: -max(f[2] or 0.0, f[3] or 0.0))
    shown = largest_first[:MOST]
    longest = max(
        (max(own or 0.0, flt or 0.0) for _, _, own, flt in shown), default=0.0
    )
    if longest <= 0:
        return None
    bars = []
    for row, name, own, in_float in shown:
        texts = [worded(figure) for figure in (in_float, own) if figure is not None]
        in_float_share = None if in_float is None else 100 * in_float / longest
        share = 100 * (own or 0.0) / longest
        bars.append(Bar(row, name, share, in_float_share, " → ".join(texts)))
    name, title, note = words
    return Bars(name, title, bars, len(found), note)


def _finite(figure: float | None) -> float | None:
    """Return a figure that a bar can show: finite and not below zero."""
    if figure is None or not math.isfinite(figure) or figure < 0:
        return None
    return float(figure)
