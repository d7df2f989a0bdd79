"""The names that checkpoints give to the experts of transformers' mixtures.

Each has one matrix of its own there; the reader stacks them.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def checkpoint_names(root: nn.Module, stem: str) -> tuple[str, ...]:
    """Return the names of one expert's matrices, ``*`` for its index.

    Their rows joined are that expert's slice of a parameter. A loading class of transformers
    declares them (its conversion mapping): Mixtral's ``experts.gate_up_proj`` is read from
    ``experts.*.w1.weight`` and ``experts.*.w3.weight``.

    Args:
        root: A model of transformers.
        stem: Name of the parameter.

    Returns:
        Names without ``.weight``; empty where experts are read as one tensor, or this transformers
        declares nothing.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # transformers 4 keeps experts in modules of their own
        return ()
    model: Any = root
    for conversion in get_model_conversion_mapping(model):
        targets = conversion.target_patterns
        makes_it = len(targets) == 1 and stem.endswith(targets[0])
        if makes_it and _joins_rows_of_experts(conversion):
            owner = stem.removesuffix(targets[0])
            return tuple(
                owner + s.removesuffix(".weight") for s in conversion.source_patterns
            )
    return ()


def _joins_rows_of_experts(conversion: Any) -> bool:
    """Return whether a conversion stacks experts of one or several matrices, joined row by row."""
    operations = getattr(conversion, "operations", [])
    steps = [(type(o).__name__, getattr(o, "dim", None)) for o in operations]
    if steps[:1] != [("MergeModulelist", 0)] or steps[1:] not in (
        [],
        [("Concatenate", 1)],
    ):
        return False
    return all(
        s.count("*") == 1 and s.endswith(".weight") for s in conversion.source_patterns
    )
