"""Hard limits of average bits, size and latency: how much a recipe uses, and by how much it overran
what was allowed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from octavo.core.errors import shown

from .scheme import OpScheme
from .space import TuningSpace, Unit
from .trial import Measurement

Counted = Literal["file", "codes"]
"""What bits of weights are counted: all that the file holds for them, or their codes alone."""

BITS: Mapping[str, tuple[bool, Counted]] = MappingProxyType(
    {
        "bits": (False, "file"),
        "all_bits": (True, "file"),
        "code_bits": (False, "codes"),
        "all_code_bits": (True, "codes"),
    }
)
"""Budgets of average weight bits -> whether ops count that no scheme is chosen for (those that a
rule keeps in float among them), and what of a weight is counted."""

MEASURED = ("size", "latency")
"""Budgets that are shares of the float model's figure and are checked against what was measured."""


def weight_bits(unit: Unit, scheme: OpScheme, of: Counted = "file") -> float:
    """Return the bits of a unit's weights under a scheme, all together.

    Args:
        unit: Whose weights.
        scheme: What they take.
        of: ``file``: codes, scales, zero points and repairs, as the file holds them. ``codes``:
            codes alone; 32 bits a weight in float.
    """
    if of == "codes":
        return float(scheme.weight_bits * unit.parameters)
    return 8 * unit.weight_bytes(scheme)


def average_bits(
    space: TuningSpace,
    schemes: Mapping[str, OpScheme],
    *,
    kept: bool = False,
    of: Counted = "file",
) -> float:
    """Return the bits of ops' weights under ``schemes`` (float where not named), a mean over their
    weights.

    Args:
        space: Its tunable units count.
        schemes: Op -> scheme.
        kept: Count the ops that no scheme is chosen for, too: those that a rule keeps in float
            among them.
        of: What of a weight is counted: see :func:`weight_bits`.
    """
    total = 0
    used = 0.0
    for unit in space.units if kept else space.tunable:
        # The last choice is float.
        scheme = schemes.get(unit.ops[0], unit.choices[-1])
        total += unit.parameters
        used += weight_bits(unit, scheme, of)
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
            kept, of = BITS[name]
            used = average_bits(space, applied, kept=kept, of=of)
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
        "bits": "at most {:g} bits a weight, scales among them, over the ops that may be quantized",
        "all_bits": "at most {:g} bits a weight, scales among them, over all ops, those kept in "
        "float among them",
        "code_bits": "at most {:g} bits a weight's code over the ops that may be quantized",
        "all_code_bits": "at most {:g} bits a weight's code over all ops, those kept in float "
        "among them",
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


def with_bits_of(budgets: Mapping[str, Any], of: Any) -> dict[str, Any]:
    """Return budgets as they are called once it is known what their bits are of.

    Args:
        budgets: As they were written, without ``bits_of``.
        of: ``bits_of``: ``tunable`` or ``all`` (which weights), ``file`` or ``codes`` (what of
            them); one word, or one of each pair.

    Raises:
        ValueError: If it is something else, or there is no budget of bits.
    """
    words = list(of) if isinstance(of, (list, tuple)) else [of]
    pairs = [word in ("tunable", "all") for word in words]
    are_known = all(word in ("tunable", "all", "file", "codes") for word in words)
    if not words or not are_known or len(set(pairs)) != len(pairs):
        raise ValueError(
            f"bits_of is {shown(of)}; it says which weights bits counts, 'tunable' or 'all', and "
            "what of them, 'file' or 'codes': one word, or one of each in a list"
        )
    if not set(budgets) & set(BITS):
        raise ValueError("bits_of says what bits counts, and there is no bits")
    found: dict[str, Any] = {}
    for name, limit in budgets.items():
        kept, counted = BITS.get(name, (False, "file"))
        kept = kept or "all" in words
        counted = "codes" if "codes" in words else counted
        meant = _BUDGET_OF[kept, counted] if name in BITS else name
        found[meant] = limit
    return found


_BUDGET_OF = {what: name for name, what in BITS.items()}
