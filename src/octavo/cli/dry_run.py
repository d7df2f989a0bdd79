"""``--dry-run``: everything is opened and read, and what would be done is told and not done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import plugin_host
from octavo.core.system.clock import Clock
from octavo.core.tuning.asked import read_asked
from octavo.core.tuning.ground import Ground, open_ground
from octavo.core.values.scheme import in_order
from octavo.core.values.space import TuningSpace, breadth

from .console import out, show_json
from .progress import duration
from .tune_job import Job, trials_kept


@dataclass(frozen=True)
class Plan:
    """What a command would do.

    Attributes:
        facts: As a JSON object.
        lines: (what, in words), for people.
        notes: What was noticed of the model and the data.
    """

    facts: Mapping[str, Any]
    lines: Sequence[tuple[str, str]]
    notes: Sequence[str] = field(default=())

    def tell(self, as_json: bool) -> None:
        """Print it."""
        if as_json:
            show_json(self.facts)
            return
        console = out()
        console.print(Text("nothing is run (--dry-run)", style="bold"))
        width = max(len(what) for what, _ in self.lines)
        for what, words in self.lines:
            console.print(Text(f"{what:<{width}}  {words}"), soft_wrap=True)
        for note in self.notes:
            console.print(Text(f"note: {note}"), soft_wrap=True)


def plan_of_tune(job: Job) -> Plan:
    """Return what a search would do; the model is opened on every backend of it."""
    settings, score = job.scored.settings, job.scored.score
    host = plugin_host(settings)
    asked = read_asked(settings, host, (score, None), (), Clock())
    with ExitStack() as stack:
        ground = open_ground(
            asked, job.model, job.scored.batches, job.scored.takes_arrays, stack
        )
        spaces = [ground.spaces[opened.name] for opened in ground.opened]
        notes = tuple(_notes(ground))
    kept = trials_kept(job.storage)
    phases = _phases(settings, is_resumed=bool(kept))
    limits = _limits(settings)
    facts = {
        "dry_run": True,
        "model": job.name,
        "data": job.scored.sources,
        "backends": [_space_facts(space) for space in spaces],
        "baseline": ground.baseline,
        "strategy": asked.strategy.kind,
        "minimise": list(asked.objectives),
        "max_trials": settings.max_trials,
        "timeout_s": settings.timeout,
        "phases": phases,
        "folder": str(job.target),
        "history": job.storage,
        "trials_in_history": kept,
        "notes": list(notes),
        "exit_code": 0,
    }
    lines = [
        ("model", job.name),
        ("data", job.scored.sources),
        ("space", breadth(spaces)),
        ("baseline", f"the float model on {ground.baseline}"),
        ("transforms", alternatives_in_words(spaces)),
        ("strategy", asked.strategy.kind),
        ("minimise", ", then ".join(asked.objectives)),
        ("limits", limits),
        ("phases", ", ".join(phases)),
        ("result", _place(job.target, "would be replaced")),
        ("history", _history_words(job.storage, kept)),
    ]
    return Plan(facts, lines, notes)


def _space_facts(space: TuningSpace) -> dict[str, Any]:
    ops = sum(len(unit.ops) for unit in space.tunable)
    choices = max((len(unit.choices) for unit in space.tunable), default=0)
    return {
        "backend": space.backend,
        "ops": ops,
        "most_choices": choices,
        "transforms": [list(map(str, chain)) for chain in space.transforms],
    }


def alternatives_in_words(spaces: Sequence[TuningSpace]) -> str:
    """Return which transforms are compared: ``none; smoothquant -> hadamard; awq``."""
    told = []
    for space in spaces:
        every = "; ".join(in_order(chain) or "none" for chain in space.transforms)
        told.append(f"{space.backend}: {every}" if len(spaces) > 1 else every)
    return " | ".join(told)


def _notes(ground: Ground) -> Iterator[str]:
    for opened in ground.opened:
        yield from opened.notes
        yield from ground.spaces[opened.name].notes
        yield from ground.data[opened.name].notes


def _limits(settings: TuningConfig) -> str:
    """Return how many evaluations there are at most, and how long they may take."""
    limits = f"at most {settings.max_trials:,} evaluations after the float model's"
    if settings.timeout is not None:
        limits += f", {duration(settings.timeout)}"
    return limits


def _phases(settings: TuningConfig, *, is_resumed: bool) -> list[str]:
    """Return what a run goes through, in order."""
    phases = ["float model", "calibration", "trials"]
    if is_resumed:
        phases.insert(2, "trials of the history told again")
    if settings.confirm:
        phases.append("confirmation of the winner")
    if settings.holdout:
        phases.append("score on held-out samples")
    return [*phases, "saving"]


def _place(path: Path, where_there: str) -> str:
    return f"{path} (there already; it {where_there})" if path.exists() else str(path)


def _history_words(storage: str, kept: int) -> str:
    if not kept:
        return storage
    return f"{storage} (holds {kept} trials; the run would go on with them)"
