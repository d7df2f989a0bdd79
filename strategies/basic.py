"""Basic: whole-model configurations first, then float fallbacks in the order of sensitivity."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme
from octavo.core.values.space import Unit

from . import BasicConfig
from .exhaustive import graded
from .fallback import Choice, Fallback
from .losses import Transforms, unit_losses
from .sequential import Search, passed


class Basic(Fallback):
    """Model-wide transforms, mixtures of op-type schemes, static to dynamic; then blocks, single ops and ever more ops in float.

    The order is neural-compressor's; each step starts from the best configuration of the step before.
    """

    config: BasicConfig

    def search(self) -> Search:
        """Run the steps; the fallbacks only where no whole-model configuration passes."""
        space = self.problem.space
        if not space.tunable:
            self.note = "nothing can be quantized in this space"
            return
        base: Choice = space.first()
        best = yield from self.start()
        until = passed if self.problem.stop_at_goal else None
        mixtures = list(self._mixtures(base, best.recipe.transforms))
        trials = [best, *(yield from self.run(mixtures, until))]
        best = min(trials, key=self.rank)
        dynamic = {
            name: self._dynamic(space.by_name[name], scheme)
            for name, scheme in self.choice(best).items()
        }
        trials = yield from self.run((space.recipe(dynamic, best.recipe.transforms),), until)
        best = min([best, *trials], key=self.rank)
        if best.passed:
            self.note = "a whole-model configuration reaches the goal"
            return
        yield from self._fall_back(self.choice(best), best.recipe.transforms)

    def _mixtures(self, base: Choice, transforms: Transforms) -> Iterator[Recipe]:
        """Yield mixtures of op-type schemes in the mode of each type's first choice, nearest to the base first."""
        space = self.problem.space
        options = {}
        for kind, units in space.types.items():
            mode = units[0].choices[0].mode
            options[kind] = tuple(
                dict.fromkeys(s for u in units for s in u.choices if s.mode == mode)
            ) or (FLOAT,)
        for picks in islice(
            graded([len(o) for o in options.values()]), 1, 1 + self.config.type_trials
        ):
            wanted = {kind: options[kind][i] for kind, i in zip(options, picks, strict=True)}
            yield space.recipe(
                {
                    u.name: wanted[u.type] if wanted[u.type] in u.choices else base[u.name]
                    for u in space.tunable
                },
                transforms,
            )

    @staticmethod
    def _dynamic(unit: Unit, scheme: OpScheme) -> OpScheme:
        if scheme.mode != "static":
            return scheme
        offered = [s for s in unit.choices if s.mode == "dynamic"]
        return next(
            (s for s in offered if s.weight == scheme.weight), offered[0] if offered else scheme
        )

    def _fall_back(self, base: Choice, transforms: Transforms) -> Search:
        space = self.problem.space
        losses = unit_losses(self.problem, self.config.sensitivity, base, transforms)
        units = sorted(
            (u for u in space.tunable if not base[u.name].is_float),
            key=lambda u: (-losses[u.name], u.parameters),
        )

        blocks: dict[str, set[str]] = {}
        for unit in units:
            blocks.setdefault(unit.block or unit.name, set()).add(unit.name)
        repeated = [names for names in blocks.values() if 1 < len(names) < len(units)]
        repeated.sort(key=lambda names: -sum(losses[n] for n in names))
        trials = yield from self.run(
            (self.without(base, names, transforms) for names in repeated), until=passed
        )
        # Where a whole block was enough, look inside it for the one op that matters.
        enough = next(
            (
                names
                for names in repeated
                if trials
                and trials[-1].passed
                and self.without(base, names, transforms) == trials[-1].recipe
            ),
            None,
        )
        singles = [u for u in units if enough is None or u.name in enough]
        trials = yield from self.run(
            (self.without(base, {u.name}, transforms) for u in singles), until=passed
        )
        if enough is not None or any(t.passed for t in trials):
            self.note = "the goal is reached with one op or one block in float"
            return
        margins = {t.recipe: t.margin for t in trials}
        order = sorted(singles, key=lambda u: -margins[self.without(base, {u.name}, transforms)])
        self.conclude((yield from self.cumulative(base, order, transforms)))
