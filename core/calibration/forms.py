"""What a loader's batch is, and which values it holds by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from octavo.core.values.calls import Call
from octavo.core.values.trees import is_container

LABELS = frozenset({"label", "labels", "target", "targets", "y"})
"""Names under which loaders yield what a model is to predict."""


def kind_of(raw: Any) -> str:
    """Return what a batch is: batches of another kind than the first are read on their own."""
    if isinstance(raw, Call):
        return "call"
    if isinstance(raw, Mapping):
        return "names"
    if isinstance(raw, (tuple, list)):
        return f"{len(raw)} items"
    return "record" if is_container(raw) else "value"


def named_values(raw: Any) -> dict[str, Any]:
    """Return the values of a mapping, a named tuple or a dataclass by name.

    Empty where there are no names.
    """
    if isinstance(raw, Mapping):
        keys = list(raw.keys())
        are_names = all(isinstance(key, str) for key in keys)
        return {key: raw[key] for key in keys} if are_names else {}
    names = getattr(raw, "_fields", None) if isinstance(raw, tuple) else None
    if names is not None:
        return dict(zip(names, raw, strict=True))
    if dataclasses.is_dataclass(raw) and not isinstance(raw, type):
        return {f.name: getattr(raw, f.name) for f in dataclasses.fields(raw)}
    return {}
