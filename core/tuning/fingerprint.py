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
from octavo.core.opening.config import TuningConfig
from octavo.core.scoring.evaluation import Scores
from octavo.core.scoring.racing import SampleScore
from octavo.core.values.json_form import canonical_json
from octavo.core.values.space import TuningSpace

TIMED = frozenset({"latency", "throughput", "energy", "memory"})
"""Objectives and budgets whose figures belong to one machine."""

_INSTRUCTIONS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8",
    "asimddp", "i8mm", "sve", "bf16",
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
    baseline: str = "",
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
        baseline: The backend whose float model is the baseline.
    """
    timed = TIMED & {*objectives, *settings.budgets}
    devices = {o.name: o.capability.device for o in opened}
    # Runs that recover nothing have the fingerprint of before there was recovery.
    recover = (
        {"recover": canonical_json(_recover(settings))} if settings.recover else {}
    )
    return {
        **recover,
        "model": opened[0].session.fingerprint(),
        "data": data,
        "space": of_spaces(opened, spaces),
        "goal": canonical_json(_goal(settings, objectives)),
        "objectives": canonical_json(_objectives(objectives)),
        "holdout": canonical_json(_holdout(settings, share, holdout_fn)),
        "samples": canonical_json(_samples(score)),
        "racing": canonical_json(_racing(settings, score)),
        "versions": canonical_json(_versions(opened)),
        "machine": canonical_json(machine(timed=bool(timed), devices=devices)),
        "baseline": canonical_json(baseline),
        "backends": canonical_json(_settings(opened)),
    }


def of_spaces(opened: Sequence[Opened], spaces: Mapping[str, TuningSpace]) -> str:
    """Return what a fingerprint says of the spaces of a run's backends."""
    return canonical_json([spaces[o.name].digest for o in opened])


def _settings(opened: Sequence[Opened]) -> dict[str, Any]:
    """Return the settings of each backend that somebody chose: threads, providers, ..."""
    found = {}
    for each in opened:
        config = each.settings
        chosen = config.model_dump(mode="json", exclude_defaults=True) if config else {}
        kept = config.to_save() if config else {}
        found[each.name] = {k: v for k, v in chosen.items() if k in kept}
    return found


def _goal(settings: TuningConfig, objectives: Mapping[str, Objective]) -> list[Any]:
    goal: list[Any] = [settings.accuracy, list(objectives)]
    if settings.budgets:
        goal.append(settings.budgets)
    return goal


def _recover(settings: TuningConfig) -> dict[str, Any]:
    steps = [step.model_dump() for step in settings.recover]
    return {"steps": steps, "top": settings.recover_top}


def _objectives(objectives: Mapping[str, Objective]) -> dict[str, Any]:
    return {
        name: objective.config.model_dump(mode="json", exclude_defaults=True)
        for name, objective in objectives.items()
    }


def _holdout(settings: TuningConfig, share: float, holdout_fn: bool) -> dict[str, Any]:
    if share:
        return {"share": share, "seed": settings.seed}
    return {"holdout_fn": holdout_fn}


def _samples(score: Any) -> dict[str, Any]:
    if not isinstance(score, SampleScore):
        return {}
    return {"count": score.samples, "best": score.best}


def _racing(settings: TuningConfig, score: Any) -> dict[str, Any]:
    # Without a best possible score of a sample nothing can be raced.
    can_race = isinstance(score, SampleScore) and score.best is not None
    if not can_race or settings.racing is None:
        return {}
    return settings.racing.model_dump(mode="json")


def _versions(opened: Sequence[Opened]) -> dict[str, Any]:
    own = {o.name: dict(o.capability.versions) for o in opened}
    return {"octavo": version("octavo"), **own}


def machine(*, timed: bool, devices: Mapping[str, str]) -> dict[str, Any]:
    """Return of this machine what the run's figures depend on.

    Args:
        timed: Times or memory are measured: then the processor itself and its cores count, else
            only what decides how kernels compute.
        devices: Backend -> its device.
    """
    cpu = _cpu()
    flags = cpu["flags"].split()
    found: dict[str, Any] = {
        "architecture": platform.machine(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "devices": dict(devices),
    }
    if timed:
        found["processor"] = cpu["name"] or platform.processor()
        found["cores"] = _cores()
    return found


def _cores() -> int | None:
    """Return how many cores this process may use."""
    # Not every system tells; a container may be given fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def shaping(settings: TuningConfig) -> dict[str, Any]:
    """Return the settings that shape the search space, JSON-ready: to say which one changed it."""
    raw = settings.model_dump(mode="json")
    keys = ["rules", "transforms", "simulated", "backends", "strategy"]
    if settings.require:
        # Runs from before there was such a setting say nothing of it.
        keys.append("require")
    return {key: raw[key] for key in keys}


def _cpu() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {"name": "", "flags": ""}
    table: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        # Of many processors the first one's rows count.
        table.setdefault(key.strip().lower(), value.strip())
    return {
        "name": table.get("model name", ""),
        "flags": table.get("flags") or table.get("features", ""),
    }


Again = Callable[[], Mapping[str, float]]

NOISY_RUNS = 3  # further evaluations that tell noise from another score
ROUNDING = 1e-5  # share of a score by which other batch sizes and thread counts move it
SPREADS = 4.0  # of the noise seen, within which two scores are taken for the same


def another_score(
    then: Mapping[str, float], now: Mapping[str, float], again: Again
) -> str:
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
        varied = _another_value(before, values)
        if varied is not None:
            return f"{name} was {before:.6g} then, and is {values[0]:.6g} now{varied}"
    return ""


def _another_value(before: float, values: Sequence[float]) -> str | None:
    """Return how scores of now vary where one of then is none of them; None where it may be."""
    least, most = min(values), max(values)
    spread = most - least
    if spread <= ROUNDING * abs(values[0]):
        spread = 0.0
    if least - SPREADS * spread <= before <= most + SPREADS * spread:
        return None
    return f" (between {least:.6g} and {most:.6g})" if spread else ""


def another_count(kept: Mapping[str, Any] | None, scores: Scores) -> str:
    """Return why a score is over other samples than one of an earlier run.

    '' where nothing shows it.

    Args:
        kept: What the earlier run kept of its samples; None where it kept nothing.
        scores: Now.
    """
    if kept is None or scores.per_sample is None:
        return ""
    then, now = kept["count"], len(scores.per_sample)
    if then == now:
        return ""
    return f"it was over {then} samples then, and is over {now} now"


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= ROUNDING * max(abs(a), abs(b)) + 1e-12
