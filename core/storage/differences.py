"""What differs between two runs whose trials are to be comparable, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from octavo.core.values.json_form import canonical_json

_WHAT = {
    "model": "its weights or its structure are others",
    "data": (
        "other calibration samples, or the same in another order; a shuffled DataLoader gives "
        "another order each time: set shuffle=False or give a list of batches"
    ),
    "batches": (
        "later calibration batches are others than before, where the first is the same; a shuffled "
        "DataLoader or an unseeded augmentation gives others each time: fix its order and seed"
    ),
}

LONGEST = 120  # characters of a value that are shown


def explain(
    stored: Mapping[str, str],
    now: Mapping[str, str],
    shaped: Mapping[str, Any],
    shapes: Mapping[str, Any],
) -> str:
    """Return what differs between two fingerprints, '' where nothing does.

    What only one holds is left out.

    Args:
        stored: The store's.
        now: This run's.
        shaped: What shaped the stored run's space (:func:`shaping`); empty where it was not
            recorded.
        shapes: What shapes this run's.
    """
    parts = []
    for key in now:
        if key not in stored or stored[key] == now[key]:
            continue
        if key == "space":
            why = _space(shaped, shapes)
        else:
            why = _WHAT.get(key) or _changes(stored[key], now[key])
        parts.append(f"another {key} ({why})" if why else f"another {key}")
    return ", ".join(parts)


def _space(shaped: Mapping[str, Any], shapes: Mapping[str, Any]) -> str:
    """Return which settings changed the space."""
    if not shaped:
        return (
            "a rule, a transform, a backend or the strategy's transforms changed which schemes "
            "there are"
        )
    changed = [key for key in shapes if key in shaped and shaped[key] != shapes[key]]
    if not changed:
        return (
            "no setting changed it: the backend offers other schemes in this version, on this "
            "processor or device"
        )
    if changed == ["strategy"]:
        was_and_is = _then_and_now(shaped["strategy"], shapes["strategy"])
        return (
            f"the strategy: {was_and_is}, and they suggest other transforms; set transforms= to "
            "the same in both runs"
        )
    return "; ".join(
        f"{key}: {_then_and_now(shaped[key], shapes[key])}" for key in changed
    )


def _changes(then: str, now: str) -> str:
    """Return what differs between two JSON texts, '' where they are none."""
    try:
        before = dict(_leaves(json.loads(then)))
        after = dict(_leaves(json.loads(now)))
    except ValueError:
        return ""
    lines = []
    for key in sorted({*before, *after}):
        was, is_now = before.get(key), after.get(key)
        if was != is_now:
            # A text that is one value has no key.
            name = f"{key}: " if key else ""
            lines.append(f"{name}{_then_and_now(was, is_now)}")
    return "; ".join(lines)


def _then_and_now(then: Any, now: Any) -> str:
    return f"{_short(then)} then, {_short(now)} now"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from _leaves(item, path)
    else:
        yield path, value


def _short(value: Any) -> str:
    text = "not said" if value is None else canonical_json(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
