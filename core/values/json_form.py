"""Values as JSON: one text for equal values, and no number that JSON does not have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces, the form that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def without_infinities(value: Any) -> Any:
    """Replace infinities, which JSON cannot hold, by None."""
    if isinstance(value, Mapping):
        return {str(k): without_infinities(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_infinities(v) for v in value]
    return (
        None
        if isinstance(value, float) and value in (float("inf"), float("-inf"))
        else value
    )
