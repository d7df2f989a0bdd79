"""Hard limits of average bits, size and latency: how much a recipe uses, and by how much it overran
what was allowed."""

from __future__ import annotations

from collections.abc import Mapping

from .scheme import OpScheme
from .space import TuningSpace
from .trial import Measurement

BITS = ("bits", "all_bits")
"""Budgets of average weight bits: over the ops that may be quantized, and over all ops."""

MEASURED = ("size", "latency")
"""Budgets that are shares of the float model's figure and are checked against what was measured."""


def average_bits(
    space: TuningSpace, schemes: Mapping[str, OpScheme], *, kept: bool = False
) -> float:
    """Return the weight bits of ops under ``schemes`` (float where not named), a mean over their
    weights.

    Scales are no part of it; a ``size`` budget counts every byte of the file.

    Args:
        space: Its tunable units count.
        schemes: Op -> scheme.
        kept: Count the ops that no scheme is chosen for, too: those that a rule keeps in float
            among them.
    """
    total = 0
    used = 0
    for unit in space.units if kept else space.tunable:
        # The last choice is float.
        scheme = schemes.get(unit.ops[0], unit.choices[-1])
        total += unit.parameters
        used += scheme.weight_bits * unit.parameters
    return used / total if total else 0.0


def overruns(
    budgets: Mapping[str, float],
    space: TuningSpace,
    applied: Mapping[str, OpScheme],
    measured: Mapping[str, Measurement],
) -> dict[str, float]:
    """Return by budget what was used as a share of what is allowed, where that is more than 1.

    Args:
        budgets: The limits.
        space: Whose ops count for ``bits``.
        applied: Op -> the scheme that really runs.
        measured: Objective -> measurement, those of :data:`MEASURED` that are limited among them.
    """
    over: dict[str, float] = {}
    for name, limit in budgets.items():
        if name in BITS:
            used = average_bits(space, applied, kept=name == "all_bits")
        else:
            used = _share_of_float(measured.get(name))
        # Means and ratios are rounded: what equals a limit keeps it.
        if used > limit * (1 + 1e-9):
            over[name] = used / limit
    return over


def _share_of_float(measured: Measurement | None) -> float:
    """Return a measurement's ratio; infinite where there is none, so that it keeps no limit."""
    if measured is None or measured.ratio is None:
        return float("inf")
    return measured.ratio


def float_keeps(budgets: Mapping[str, float]) -> bool:
    """Return whether the float model keeps every limit: it has 1 of its own size and latency, and
    32 bits a weight."""
    for name, limit in budgets.items():
        needed = 32 if name in BITS else 1
        if limit < needed:
            return False
    return True


def describe(budgets: Mapping[str, float]) -> str:
    """Return the limits in words, for the goal's line."""
    words = {
        "bits": "at most {:g} bits a weight over the ops that may be quantized",
        "all_bits": "at most {:g} bits a weight over all ops, those kept in float among them",
        "size": "at most {:g} of the size",
        "latency": "at most {:g} of the latency",
    }
    return ", ".join(words[name].format(limit) for name, limit in budgets.items())


def explain(over: Mapping[str, float], budgets: Mapping[str, float]) -> str:
    """Return which limits were overrun, with figures; empty if none was."""
    return ", ".join(
        f"{name} {share * budgets[name]:.4g}, and {budgets[name]:g} is allowed"
        for name, share in over.items()
    )
