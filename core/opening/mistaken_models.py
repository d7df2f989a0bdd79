"""What people pass for a model that is none, and what they meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.core.values.trees import is_array

_HOLD = ("model", "module", "net", "network", "_orig_mod", "estimator", "graph")
"""Attributes under which pipelines, trainers and wrappers keep the model that they run."""


def remedy(model: Any, claimed: Callable[[Any], bool]) -> str:
    """Return what to pass instead, as the rest of a sentence; empty where that cannot be told.

    Args:
        model: What no backend claims.
        claimed: Tells whether a backend claims something else.
    """
    if isinstance(model, type):
        return f", which is a class: pass an object of {model.__name__}"
    for name in _HOLD:
        if claimed(getattr(model, name, None)):
            return (
                f": pass its .{name}, which is the model, and give calibration batches in the form "
                "that this takes"
            )
    owner = getattr(model, "__self__", None)
    if owner is not None and claimed(owner):
        return f": pass the {type(owner).__name__} whose method it is"
    if isinstance(model, Mapping):
        holds_arrays = any(is_array(v) for v in model.values())
        found = "parameters of a model" if holds_arrays else "a mapping"
        return (
            f", which is {found} and no model: load them into the model and pass that"
        )
    if callable(model) and hasattr(model, "__code__"):
        return (
            ", which is a function: pass the model that it calls, or make the function the forward "
            "of a module that holds it"
        )
    return ""
