"""One search over several backends: the strategies of the single spaces take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.strategy import (
    WAIT,
    Believed,
    Foresight,
    Problem,
    Strategy,
    Wait,
)
from octavo.core.opening.config import TuningConfig
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.sensitivity.shared import SharedScores, SharedSensitivity
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

from .bench import Bench
from .sensitivities import earlier_trials, worth_of_probes
from .settling import Settled


class JointStrategy:
    """Asks each backend's strategy in turn, and tells each the trials of its own backend.

    The backend is a dimension of the search, and no strategy has to know it: every built-in and
    every stranger's works over several backends. A backend whose strategy has nothing left drops
    out, and the others take its evaluations.
    """

    def __init__(self, strategies: Mapping[str, Strategy]) -> None:
        self._strategies = dict(strategies)
        self._open = list(strategies)
        self._next = 0

    def ask(self) -> Recipe | Wait | None:
        """Return the next backend's next recipe."""
        while self._open:
            is_waiting = False
            for _ in range(len(self._open)):
                if not self._open:
                    break
                name = self._open[self._next % len(self._open)]
                found = self._strategies[name].ask()
                if found is None:
                    self._open.remove(name)
                    continue
                self._next += 1
                if not isinstance(found, Wait):
                    return found
                is_waiting = True
            if is_waiting:
                return WAIT
        return None

    def tell(self, trial: Trial) -> None:
        """Pass a trial on."""
        self._strategies[trial.recipe.backend].tell(trial)

    def explain(self) -> str:
        """Return each strategy's line."""
        lines = [(name, s.explain()) for name, s in self._strategies.items()]
        if len(lines) == 1:
            return lines[0][1]
        return "; ".join(f"{name}: {line}" for name, line in lines if line)

    def narrowed(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        """Return what each strategy leaves of its own backend's trials."""
        found: list[Trial] = []
        for name, strategy in self._strategies.items():
            own = [trial for trial in trials if trial.recipe.backend == name]
            found += strategy.narrowed(own)
        strangers = [t for t in trials if t.recipe.backend not in self._strategies]
        return found + strangers

    def front(self) -> Mapping[str, Sequence[Believed]]:
        """Return by backend what its strategy believes of loss by size."""
        return {name: each.front() for name, each in self._strategies.items()}

    def foresee(self) -> Foresight:
        """Add up what the strategies that are still open may ask for."""
        ahead = [self._strategies[name].foresee() for name in self._open]
        known = [each.trials for each in ahead if each.trials is not None]
        return Foresight(
            sum(known) if len(known) == len(ahead) else None,
            any(each.probes for each in ahead),
            any(each.probes_each for each in ahead),
        )


def _float_size(bench: Bench) -> float:
    """Return the bytes of the float model's saved files; 0 where they are not measured."""
    measured = bench.scored.objectives.get("size") if bench.scored else None
    return measured.value if measured is not None else 0.0


def build_strategy(
    bench: Bench,
    settings: TuningConfig,
    strategy: PartConfig,
    host: PluginHost,
    services: Mapping[str, SensitivityService],
) -> JointStrategy:
    """Return the run's strategy, made anew: one for each backend that has a choice.

    Args:
        bench: The run's.
        settings: The run's.
        strategy: The strategy's settings.
        host: Plugins.
        services: By backend.
    """
    part = host.part("strategies", strategy.kind)
    scores: SharedScores = {}
    built: dict[str, Strategy] = {}
    for name, service in services.items():
        space, settle = bench.backends[name].searched, bench.backends[name].settle
        is_one_of_many = len(services) > 1
        problem = Problem(
            space,
            tuple(bench.objectives),
            settings.seed,
            SharedSensitivity(service, space, scores) if is_one_of_many else service,
            settings.stop == "goal",
            bench.budgets,
            max(1, settings.max_trials // len(services)),
            partial(worth_of_probes, bench, service),
            earlier_trials(bench, service),
            _float_size(bench),
            settle,
        )
        built[name] = Settled(part.build(strategy, problem), settle, bench.baseline)
    joined = JointStrategy(built)
    bench.narrowed, bench.front = joined.narrowed, joined.front
    return joined
