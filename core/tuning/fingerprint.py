"""What must be the same for two runs' trials to be comparable, and what it is that differs."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from octavo.core.contract.adapter import Opened
from octavo.core.contract.objective import Objective
from octavo.core.scoring.evaluation import Scores
from octavo.core.scoring.racing import SampleScore
from octavo.core.values.json_form import canonical_json
from octavo.core.values.space import TuningSpace

from .config import TuningConfig

TIMED = frozenset({"latency", "throughput", "energy", "memory"})
"""Objectives and budgets whose figures belong to one machine."""

_INSTRUCTIONS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve", "bf16",
)  # fmt: skip
"""Extensions by which integer and half-precision kernels choose how they compute, and round."""


def fingerprint(
    settings: TuningConfig,
    opened: Sequence[Opened],
    spaces: Mapping[str, TuningSpace],
    objectives: Mapping[str, Objective],
    score: Any,
    *,
    data: str,
    share: float,
    holdout_fn: bool,
) -> dict[str, str]:
    """Return by key what makes trials comparable; each value is a digest or JSON.

    Args:
        settings: The run's.
        opened: Its backends, the model's own first.
        spaces: By backend.
        objectives: By name.
        score: The search's score function.
        data: Digest of the calibration batches.
        share: Of the samples that are held out.
        holdout_fn: Whether a score over other data has a say at the end.
    """
    limits = [settings.budgets] if settings.budgets else []
    timed = TIMED & {*objectives, *settings.budgets}
    kept = {"share": share, "seed": settings.seed} if share else {"holdout_fn": holdout_fn}
    sampled = isinstance(score, SampleScore)
    raced = settings.racing if sampled and score.best is not None else None
    return {
        "model": opened[0].session.fingerprint(),
        "data": data,
        "space": canonical_json([spaces[o.name].digest for o in opened]),
        "goal": canonical_json([settings.accuracy, list(objectives), *limits]),
        "objectives": canonical_json(
            {
                n: o.config.model_dump(mode="json", exclude_defaults=True)
                for n, o in objectives.items()
            }
        ),
        "holdout": canonical_json(kept),
        "samples": canonical_json({"count": score.samples, "best": score.best} if sampled else {}),
        "racing": canonical_json(raced.model_dump(mode="json") if raced is not None else {}),
        "versions": canonical_json(
            {"octavo": version("octavo"), **{o.name: dict(o.capability.versions) for o in opened}}
        ),
        "machine": canonical_json(
            machine(timed=bool(timed), devices={o.name: o.capability.device for o in opened})
        ),
    }


def machine(*, timed: bool, devices: Mapping[str, str]) -> dict[str, Any]:
    """Return of this machine what the run's figures depend on.

    Args:
        timed: Times or memory are measured: then the processor itself and its cores count, else only
            what decides how kernels compute.
        devices: Backend -> its device.
    """
    cpu = _cpu()
    found: dict[str, Any] = {
        "architecture": platform.machine(),
        "instructions": [i for i in _INSTRUCTIONS if i in cpu["flags"].split()],
        "devices": dict(devices),
    }
    if timed:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        found |= {"processor": cpu["name"] or platform.processor(), "cores": cores}
    return found


def shaping(settings: TuningConfig) -> dict[str, Any]:
    """Return the settings that shape the search space, JSON-ready: to say which one changed it."""
    raw = settings.model_dump(mode="json")
    return {key: raw[key] for key in ("rules", "transforms", "simulated", "backends", "strategy")}


def _cpu() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {"name": "", "flags": ""}
    rows = [line.partition(":") for line in text.splitlines()]
    table = {key.strip().lower(): value.strip() for key, _, value in reversed(rows)}
    return {
        "name": table.get("model name", ""),
        "flags": table.get("flags") or table.get("features", ""),
    }


Again = Callable[[], Mapping[str, float]]

NOISY_RUNS = 3  # further evaluations that tell noise from another score
ROUNDING = 1e-5  # share of a score by which other batch sizes and thread counts move it
SPREADS = 4.0  # of the noise seen, within which two scores are taken for the same


def another_score(then: Mapping[str, float], now: Mapping[str, float], again: Again) -> str:
    """Return why a score that was taken anew is not the one that the history holds; '' where it is.

    A score that differs is taken a few times more: one that comes out the same each time is another
    score, and one that varies may be the same.

    Args:
        then: The history's, by metric.
        now: What the same model scores now.
        again: Scores it once more.
    """
    if set(then) != set(now):
        return f"it gave {', '.join(sorted(then))} then, and gives {', '.join(sorted(now))} now"
    if all(_same(then[name], now[name]) for name in then):
        return ""
    runs = [now, *(again() for _ in range(NOISY_RUNS))]
    for name, before in then.items():
        values = [float(run[name]) for run in runs]
        spread = max(values) - min(values)
        if spread <= ROUNDING * abs(values[0]):
            spread = 0.0
        near = min(values) - SPREADS * spread <= before <= max(values) + SPREADS * spread
        if not near:
            varied = f" (between {min(values):.6g} and {max(values):.6g})" if spread else ""
            return f"{name} was {before:.6g} then, and is {values[0]:.6g} now{varied}"
    return ""


def another_count(kept: Mapping[str, Any] | None, scores: Scores) -> str:
    """Return why a score is over other samples than one of an earlier run; '' where nothing shows it.

    Args:
        kept: What the earlier run kept of its samples; None where it kept nothing.
        scores: Now.
    """
    if kept is None or scores.per_sample is None or len(scores.per_sample) == kept["count"]:
        return ""
    return f"it was over {kept['count']} samples then, and is over {len(scores.per_sample)} now"


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= ROUNDING * max(abs(a), abs(b)) + 1e-12
