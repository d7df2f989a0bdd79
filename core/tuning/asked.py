"""What the caller of a run asked for, read and checked before any model is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.core.contract.criterion import Criterion
from octavo.core.contract.objective import Objective
from octavo.core.contract.parts import PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.alternatives import PartTable
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.rule_schemes import read_schemes
from octavo.core.scoring.held_out import CERTIFIED, split_samples
from octavo.core.system.clock import Clock

from .progress import Progress
from .telling.phases import Phases
from .telling.remarks import Remarks

Score = Callable[[Any], Any]


@dataclass(frozen=True)
class ScoreFunctions:
    """What is scored on which data.

    Attributes:
        search: Scores candidates of the search.
        holdout: Scores winners on data that the search never sees; None where there is none.
        share: Of the samples, what is held out.
    """

    search: Score
    holdout: Score | None
    share: float


@dataclass(frozen=True)
class Asked:
    """What the caller asked for, read and checked; no model is opened yet.

    Attributes:
        settings: Of the run.
        host: Plugins.
        criterion: Judges.
        objectives: By name, most important first.
        strategy: The strategy's settings.
        scores: What is scored.
        listeners: Told how it goes.
        remarks: Told what the user should know.
        clock: Runs since the call.
        phases: Tells the listeners where the run is.
    """

    settings: TuningConfig
    host: PluginHost
    criterion: Criterion
    objectives: Mapping[str, Objective]
    strategy: PartConfig
    scores: ScoreFunctions
    listeners: tuple[Progress, ...]
    remarks: Remarks
    clock: Clock
    phases: Phases


def read_asked(
    settings: TuningConfig,
    host: PluginHost,
    scores: tuple[Score, Score | None],
    listeners: tuple[Progress, ...],
    clock: Clock,
    remarks: Remarks | None = None,
) -> Asked:
    """Check what the settings name: schemes, criterion, objectives and strategy."""
    read_schemes(settings.rules, host)
    config = settings.criterion(host)
    criterion: Criterion = host.part("criteria", config.kind).build(config)
    return Asked(
        settings,
        host,
        criterion,
        build_objectives(settings.objective.minimise, host),
        host.read("strategies", settings.strategy),
        _parted(*scores, settings, criterion),
        listeners,
        remarks or Remarks(listeners),
        clock,
        Phases(listeners, clock),
    )


def _parted(
    score: Score, holdout: Score | None, settings: TuningConfig, criterion: Criterion
) -> ScoreFunctions:
    """Hold samples out of the search where the settings or a certificate ask for it."""
    share = settings.holdout
    is_to_be_certified = getattr(criterion.config, "confidence", None) is not None
    if is_to_be_certified and not share and holdout is None:
        share = CERTIFIED
    if share:
        is_required = bool(settings.holdout)
        score, holdout = split_samples(
            score, share, settings.seed, required=is_required
        )
    return ScoreFunctions(score, holdout, share)


def build_objectives(
    wanted: Sequence[PartTable], host: PluginHost
) -> dict[str, Objective]:
    """Return the objectives by name, in that order.

    Raises:
        ConfigError: If one is unknown or cannot be measured here.
    """
    found: dict[str, Objective] = {}
    for raw in wanted:
        config = host.read("objectives", raw)
        objective: Objective = host.part("objectives", config.kind).build(config)
        objective.check()
        found[config.kind] = objective
    return found
