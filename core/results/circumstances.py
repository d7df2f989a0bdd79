"""What a result says of its circumstances: the machine, and the data that found and judged it."""

from __future__ import annotations

from os import PathLike
from typing import Any

from octavo.core.calibration.data import CalibrationData, rows
from octavo.core.contract.adapter import Batch, Opened
from octavo.core.scoring.evaluation import Scores
from octavo.core.system.machine import machine
from octavo.core.values.calls import named_leaves
from octavo.core.values.trees import is_array


def machine_record(opened: tuple[Opened, ...]) -> dict[str, Any]:
    """Return the machine with the threads that backends were told to take, JSON-ready."""
    threads = {}
    for backend in opened:
        asked = backend.settings.to_save() if backend.settings else {}
        count = asked.get("threads")
        # 0 and None leave the choice to the runtime.
        if count:
            threads[backend.name] = int(count)
    return machine(threads).to_json()


def data_record(data: CalibrationData, source: str) -> dict[str, Any]:
    """Return what calibrated and what was timed, JSON-ready.

    Args:
        data: Of the backend that the result is on.
        source: What the batches were given as.
    """
    first = data.first()
    batches, samples = data.counts
    return {
        "calibration": {
            "source": source,
            # None of a factory that was never read to its end.
            "batches": batches,
            "samples": samples,
            "inputs": inputs_record(first, data.names),
            "digest": data.digest(),
        },
        "timing": {"samples": rows(first), "inputs": inputs_record(first, data.names)},
    }


def holdout_record(share: float, scores: Scores | None) -> dict[str, Any]:
    """Return the share of the samples that were held out, and how many they are.

    Args:
        share: 0 where the held-out samples have a score function of their own.
        scores: The float model's on them; None where nothing is held out.
    """
    if scores is None:
        return {}
    per_sample = scores.per_sample
    count = None if per_sample is None else len(per_sample)
    return {"share": share or None, "samples": count}


def inputs_record(batch: Batch, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the shape and dtype of each array of a batch, and plain values as text, by name."""
    found: dict[str, Any] = {}
    for name, leaf in named_leaves(batch, names):
        if is_array(leaf):
            dtype = str(leaf.dtype).removeprefix("torch.")
            found[name] = {"shape": [int(d) for d in leaf.shape], "dtype": dtype}
        else:
            found[name] = {"value": repr(leaf)[:80]}
    return found


def source_of(given: Any) -> str:
    """Return what calibration data was given as: a path, a function's name, a type's name."""
    if given is None:
        return ""
    if isinstance(given, (str, PathLike)):
        return str(given)
    name = getattr(given, "__name__", "")
    if callable(given) and name:
        return f"{name}()"
    return type(given).__name__


__all__ = ["data_record", "holdout_record", "machine_record", "source_of"]
