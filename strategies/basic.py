"""Basic: whole-model configurations first, then float fallbacks in the order of sensitivity."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from octavo.core.contract.strategy import Foresight
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme
from octavo.core.values.space import Unit
from octavo.core.values.trial import Trial
from octavo.strategies.beliefs.losses import Transforms, unit_losses

from . import BasicConfig
from .exhaustive import graded
from .fallback import Choice, Fallback
from .sequential import Asking, Search, passed


class Basic(Fallback):
    """Model-wide transforms, mixtures of op-type schemes, static to dynamic; then float fallbacks.

    Blocks, single ops and ever more ops in float. The order is neural-compressor's; each step
    starts from the best configuration of the step before.
    """

    config: BasicConfig

    def search(self) -> Search:
        """Run the steps; the fallbacks only where no whole-model configuration passes."""
        space = self.space
        if not space.tunable:
            self.note = "nothing can be quantized in this space"
            return
        self.ahead = Foresight(probes=True)
        best = yield from self.start()
        until = passed if self.problem.stop_at_goal else None
        mixtures = list(self._mixtures(space.first(), best.recipe.transforms))
        if best.passed:
            self.ahead = Foresight(len(mixtures) + 1)
        trials = yield from self.run(mixtures, until)
        best = min([best, *trials], key=self.rank)
        recipe = self._made_dynamic(best)
        trials = yield from self.run((recipe,), until)
        best = min([best, *trials], key=self.rank)
        if best.passed:
            self.note = "a whole-model configuration reaches the goal"
            return
        yield from self._fall_back(self.choice(best), best.recipe.transforms)

    def foresee(self) -> Foresight:
        """Return what may still be asked for.

        Once a trial passes no op is taken back to float, and no sensitivity asked for.
        """
        may_probe = not any(trial.passed for trial in self.trials)
        ahead = super().foresee()
        return replace(ahead, probes=ahead.probes and may_probe)

    def _made_dynamic(self, best: Trial) -> Recipe:
        """Return a trial's recipe with the dynamic counterpart of each static scheme."""
        static = self.choice(best)
        dynamic = {u.name: _dynamic(u, static[u.name]) for u in self.units}
        return self.space.recipe(dynamic, best.recipe.transforms)

    def _mixtures(self, base: Choice, transforms: Transforms) -> Iterator[Recipe]:
        """Yield mixtures of op-type schemes, nearest to the base first.

        All are in the mode of each type's first choice.
        """
        space = self.space
        options = {kind: _options(units) for kind, units in space.types.items()}
        mixtures = graded([len(o) for o in options.values()])
        # The first mixture is the base itself.
        for picks in islice(mixtures, 1, 1 + self.config.type_trials):
            wanted = {}
            for kind, index in zip(options, picks, strict=True):
                wanted[kind] = options[kind][index]
            choice = {}
            for unit in space.tunable:
                scheme = wanted[unit.type]
                if scheme not in unit.choices:
                    scheme = base[unit.name]
                choice[unit.name] = scheme
            yield space.recipe(choice, transforms)

    def _fall_back(self, base: Choice, transforms: Transforms) -> Search:
        """Put blocks in float, then single ops, then ever more ops, until one passes."""
        kind = self.config.sensitivity
        self.ahead = Foresight()
        losses = unit_losses(self.problem, kind, base, transforms)
        units = self.quantized(base)
        units.sort(key=lambda u: (-losses[u.name], u.parameters))
        blocks = _blocks(units)
        blocks.sort(key=lambda names: -sum(losses[n] for n in names))
        enough = yield from self._one_block(base, blocks, transforms)
        # Where a whole block was enough, look inside it for the one op that matters.
        singles = [u for u in units if enough is None or u.name in enough]
        recipes = (self.without(base, {u.name}, transforms) for u in singles)
        trials = yield from self.run(recipes, until=passed)
        if enough is not None or any(t.passed for t in trials):
            self.note = "the goal is reached with one op or one block in float"
            return
        margins = {t.recipe: t.margin for t in trials}

        def from_best(unit: Unit) -> float:
            return -margins[self.without(base, {unit.name}, transforms)]

        singles.sort(key=from_best)
        reached = yield from self.cumulative(base, singles, transforms)
        self.conclude(reached)

    def _one_block(
        self, base: Choice, blocks: Sequence[Collection[str]], transforms: Transforms
    ) -> Asking[Collection[str] | None]:
        """Put one block after the other in float; return the first that is enough, or None."""
        recipes = (self.without(base, names, transforms) for names in blocks)
        trials = yield from self.run(recipes, until=passed)
        if not trials or not trials[-1].passed:
            return None
        for names in blocks:
            if self.without(base, names, transforms) == trials[-1].recipe:
                return names
        return None


def _options(units: Sequence[Unit]) -> tuple[OpScheme, ...]:
    """Return what units of one type offer in the mode of the first choice."""
    mode = units[0].choices[0].mode
    every = dict.fromkeys(scheme for unit in units for scheme in unit.choices)
    of_mode = tuple(scheme for scheme in every if scheme.mode == mode)
    return of_mode or (FLOAT,)


def _dynamic(unit: Unit, scheme: OpScheme) -> OpScheme:
    """Return the dynamic counterpart of a static scheme, where the unit offers one."""
    if scheme.mode != "static":
        return scheme
    offered = [s for s in unit.choices if s.mode == "dynamic"]
    alike = [s for s in offered if s.weight == scheme.weight]
    return [*alike, *offered, scheme][0]


def _blocks(units: Sequence[Unit]) -> list[list[str]]:
    """Return the units of each block that holds several of them, and not all."""
    blocks: dict[str, list[str]] = {}
    for unit in units:
        block = unit.block or unit.name
        blocks.setdefault(block, []).append(unit.name)
    return [names for names in blocks.values() if 1 < len(names) < len(units)]
