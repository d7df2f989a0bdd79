"""Coordinate descent over settings: one of them at a time, all others fixed."""

from __future__ import annotations

from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import Unit
from octavo.core.values.trial import Trial

from . import CoordinateConfig
from .fallback import Choice, Fallback
from .sequential import Search

Settings = tuple[tuple[PartChoice, ...], PartChoice]
"""Algorithm and calibrator of a scheme."""


class Coordinate(Fallback):
    """The transform (smoothing alpha), then calibrator and algorithm (clip) of each op type.

    The best value of a setting stays. Ends after a sweep that changes nothing. The values of one
    setting do not wait for each other, so that they can be tried in parallel.
    """

    config: CoordinateConfig

    def search(self) -> Search:
        """Sweep until nothing improves."""
        space = self.space
        best = yield from self.one(space.recipe(space.first()))
        sweeps = 0
        for _ in range(self.config.sweeps):
            sweeps += 1
            before = best
            trials = yield from self.run(self._transformed(best))
            best = max([best, *trials], key=_margin)
            for kind in space.types:
                trials = yield from self.run(self._varied(best, kind))
                best = max([best, *trials], key=_margin)
            if best is before:
                break
        self.note = f"settings chosen in {sweeps} sweeps"
        if not best.passed:
            self.note += "; none reaches the goal with every op quantized"

    def _transformed(self, best: Trial) -> list[Recipe]:
        """Return the recipe under all other transforms."""
        space = self.space
        choice = self.choice(best)
        return [
            space.recipe(choice, t)
            for t in space.transforms
            if t != best.recipe.transforms
        ]

    def _varied(self, best: Trial, kind: str) -> list[Recipe]:
        """Return the recipe with other settings for one op type.

        Schemes are alike in everything but algorithm and calibrator.
        """
        space = self.space
        base = self.choice(best)
        units = space.types[kind]
        every: dict[Settings, None] = {}
        for unit in units:
            alike = _alike(unit, base[unit.name])
            every |= dict.fromkeys(map(_settings, alike))
        found = []
        for settings in every:
            changed: Choice = {
                u.name: _with_settings(u, base[u.name], settings) for u in units
            }
            if base | changed != base:
                found.append(space.recipe(base | changed, best.recipe.transforms))
        return found


def _margin(trial: Trial) -> float:
    return trial.margin


def _settings(scheme: OpScheme) -> Settings:
    return scheme.algorithms, scheme.calibrator


def _alike(unit: Unit, scheme: OpScheme) -> list[OpScheme]:
    """Return a unit's choices that differ from a scheme in their settings at most."""

    def form(s: OpScheme) -> tuple[object, ...]:
        return s.mode, s.weight, s.input, s.output

    return [s for s in unit.choices if form(s) == form(scheme)]


def _with_settings(unit: Unit, scheme: OpScheme, settings: Settings) -> OpScheme:
    """Return a unit's scheme with other settings, or as it is where these are not offered."""
    wanted = [s for s in _alike(unit, scheme) if _settings(s) == settings]
    return wanted[0] if wanted else scheme
