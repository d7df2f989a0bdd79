"""The tables in print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .arithmetic import log_ratio
from .bench import Subject
from .store import Cell, Store

WIDE = 15
BARS = {"code": 2.0, "file": 0.0}
"""Percent that octavo may lose more than the best peer."""


def distances(
    store: Store, subject: Subject, axis: str, rounding: str, shown: Sequence[str]
) -> list[str]:
    """Return the lines of one table: methods by budgets, distance x 1000 and quality.

    The best of a budget is marked.
    """
    budgets = budgets_of(store, axis)
    lines = [
        f"{subject.unit} x 1000, by {axis} bits, {rounding}"
        f" ({len(subject.held_out)} batches held out; * is the least)",
        f"{'':<16}" + "".join(f"{b:>{WIDE}g}" for b in budgets),
    ]
    best = {b: _least(store, axis, b, rounding, shown) for b in budgets}
    for method in shown:
        cells = [
            _judged(store.cell(axis, b, method), rounding, best[b]) for b in budgets
        ]
        if any(text.strip() for text in cells):
            lines.append(f"{method:<16}" + "".join(f"{t:>{WIDE}}" for t in cells))
    return lines


def _judged(cell: Cell, rounding: str, best: float) -> str:
    judged = cell.get("judged", {}).get(rounding)
    if judged is None:
        return _short(cell.get("note", "")) if cell.get("allocation") is None else ""
    mean = float(np.mean(judged["distances"]))
    mark = "*" if mean <= best * (1 + 1e-9) else ""
    text = f"{mark}{1000 * mean:.3g}"
    quality = judged["quality"]
    return text if quality is None else f"{text}/{quality:.2f}"


def _least(
    store: Store, axis: str, budget: float, rounding: str, shown: Sequence[str]
) -> float:
    means = [
        float(np.mean(judged["distances"]))
        for method in shown
        if (judged := store.cell(axis, budget, method).get("judged", {}).get(rounding))
    ]
    return min(means, default=float("nan"))


def against(
    store: Store,
    axis: str,
    rounding: str,
    ours: str,
    others: Sequence[str],
    peers: Sequence[str],
) -> list[str]:
    """Return how much more distance one method has than others, mean +- standard error of the
    rows' log ratios; last, beside the best peer of each budget, whether the bar is met."""
    budgets = budgets_of(store, axis)
    lines = [f"{ours} over the others, %, by {axis} bits, {rounding}"]
    for other in others:
        found = [_more(store, axis, b, rounding, ours, other) for b in budgets]
        texts = [f"{m[0]:+.1f}+-{m[1]:.1f}" if m else "" for m in found]
        if any(texts) and other != ours:
            lines.append(f"{other:<16}" + "".join(f"{t:>{WIDE}}" for t in texts))
    verdicts = []
    for budget in budgets:
        beside = [_more(store, axis, budget, rounding, ours, peer) for peer in peers]
        worst = max((m[0] for m in beside if m), default=None)
        verdicts.append("" if worst is None else verdict(worst, axis))
    if any(verdicts):
        lines.append(f"{'best peer':<16}" + "".join(f"{v:>{WIDE}}" for v in verdicts))
    return lines if len(lines) > 1 else []


def verdict(more: float, axis: str) -> str:
    """Return a difference from the best peer, in percent, and whether it is within the bar."""
    met = more <= BARS[axis]
    return f"{more:+.1f} {'met' if met else 'MISSED'}"


def _more(
    store: Store, axis: str, budget: float, rounding: str, ours: str, other: str
) -> tuple[float, float] | None:
    mine = store.cell(axis, budget, ours).get("judged", {}).get(rounding)
    its = store.cell(axis, budget, other).get("judged", {}).get(rounding)
    if mine is None or its is None:
        return None
    return log_ratio(mine["distances"], its["distances"])


def costs(store: Store, axis: str, shown: Sequence[str]) -> list[str]:
    """Return what was used of each budget, the seconds, and whether a second process agreed."""
    budgets = budgets_of(store, axis)
    lines = [
        f"used / allowed by {axis} bits; seconds, the first budget and then the others; the same "
        "in a second process"
    ]
    for method in shown:
        cells = [store.cell(axis, b, method) for b in budgets]
        there = [c for c in cells if c.get("allocation")]
        if not there:
            notes = {c["note"] for c in cells if c.get("note")}
            if notes:
                lines.append(f"{method:<16} {_short(sorted(notes)[0], 60)}")
            continue
        used = " ".join(
            f"{c['used'] / b:.3f}" if c.get("allocation") else "-"
            for b, c in zip(budgets, cells, strict=True)
        )
        seconds = " ".join(f"{c['seconds']:.1f}" for c in there)
        lines.append(f"{method:<16} {used}   {seconds} s   {_again(there)}")
    return lines


def _again(cells: Sequence[Cell]) -> str:
    said = [c["again"] for c in cells if "again" in c]
    if not said:
        return "not tried"
    return "identical" if all(said) else f"{said.count(False)} differ"


def budgets_of(store: Store, axis: str) -> list[float]:
    """Return the budgets of an axis that the store has cells of."""
    names = (name.split(" ")[:2] for name in store.cells)
    return sorted({float(b) for a, b in names if a == axis})


def _short(note: str, most: int = WIDE - 1) -> str:
    return note if len(note) <= most else note[: most - 1] + "~"


def everything(
    store: Store, subject: Subject, methods: Sequence[str], peers: Sequence[str]
) -> str:
    """Return all tables of a store."""
    parts: list[list[str]] = []
    axes = [axis for axis in ("code", "file") if budgets_of(store, axis)]
    for axis in axes:
        for rounding in subject.roundings:
            shown = [m for m in methods if _is_shown(m, rounding)]
            ours = "octavo" if rounding == "rtn" else f"octavo {rounding}"
            parts.append(distances(store, subject, axis, rounding, shown))
            parts.append(against(store, axis, rounding, ours, shown, peers))
        parts.append(costs(store, axis, methods))
    return "\n\n".join("\n".join(part) for part in parts if part)


def _is_shown(method: str, rounding: str) -> bool:
    """Return whether a method's allocation is judged under a rounding: what was searched with one
    is judged under it alone."""
    searched: Any = method.partition("octavo ")[2]
    return searched in ("", rounding)
