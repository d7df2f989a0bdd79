"""What a run might still combine: transforms with each other, weight algorithms in a chain."""

from __future__ import annotations

from collections.abc import Iterator

from octavo.core.values.trial import Trial

from .model import ReportData

_NARROW = 4
"""Bits of a weight up to which it shows how the rounding is chosen."""


def untried_combinations(closest: Trial, data: ReportData) -> Iterator[tuple[str, str]]:
    """Yield (what it does, the setting as TOML) of combinations that no trial had.

    Args:
        closest: The trial that came closest to the goal.
        data: The run.
    """
    types = {op.name: op.type for op in data.ops}
    schemes = closest.recipe.schemes
    is_static = any(
        scheme.mode == "static" and types.get(op) == "linear"
        for op, scheme in schemes.items()
    )
    has_combined = any(len(trial.recipe.transforms) > 1 for trial in data.trials)
    if is_static and not has_combined:
        yield (
            "move outliers of activations into weights, and spread what is left by a rotation",
            'transforms = [["smoothquant", "hadamard"]]',
        )
    narrow = [s for s in schemes.values() if s.weight and s.weight.bits <= _NARROW]
    if narrow and not any(scheme.refined_by for scheme in narrow):
        yield (
            "round narrow weights by two algorithms: gptq on the grid that awq's search chose",
            '[[rules]]\nalgorithm = [["awq", "gptq"]]',
        )
