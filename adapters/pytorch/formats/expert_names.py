"""The names that checkpoints give to the experts of transformers' mixtures: one matrix each, which the reader stacks."""

from __future__ import annotations

from typing import Any

from torch import nn


def checkpoint_names(root: nn.Module, stem: str) -> tuple[str, ...]:
    """Return the names of one expert's matrices, ``*`` for its index, whose rows joined are that expert's slice of a parameter.

    A loading class of transformers declares them (its conversion mapping): Mixtral's ``experts.gate_up_proj`` is read from
    ``experts.*.w1.weight`` and ``experts.*.w3.weight``.

    Args:
        root: A model of transformers.
        stem: Name of the parameter.

    Returns:
        Names without ``.weight``; empty where experts are read as one tensor, or this transformers declares nothing.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # transformers 4 keeps experts in modules of their own
        return ()
    model: Any = root
    for conversion in get_model_conversion_mapping(model):
        steps = [
            (type(o).__name__, getattr(o, "dim", None))
            for o in getattr(conversion, "operations", [])
        ]
        if steps[:1] != [("MergeModulelist", 0)] or steps[1:] not in ([], [("Concatenate", 1)]):
            continue
        sources, targets = conversion.source_patterns, conversion.target_patterns
        if (
            len(targets) == 1
            and stem.endswith(targets[0])
            and all(s.count("*") == 1 and s.endswith(".weight") for s in sources)
        ):
            return tuple(stem.removesuffix(targets[0]) + s.removesuffix(".weight") for s in sources)
    return ()
