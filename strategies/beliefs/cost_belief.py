"""What a recipe costs: sizes are known, and times are learnt from a few evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from octavo.core.contract.strategy import Problem
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace, Unit
from octavo.core.values.trial import Trial

from .picks import Picks, total, weight_bytes

Family = tuple[str, str, int]

RATES: Mapping[str, tuple[float, float]] = {
    "float": (1.0, 0.0),
    "static": (0.35, 0.12),
    "dynamic": (0.45, 0.15),
    "cast": (0.6, 0.2),
    "weight_only": (0.95, 0.15),
}
"""Time of an op over its float time, before anything was measured: mean, standard deviation.

A trial corrects it.
"""

NARROW = (
    1.02  # times the rate of 8 bits: what fewer are believed to take until a trial says
)

TIE = 1e-6  # of the whole: the backend's order decides among equal times

OVERHEAD = 0.1  # share of the float time that no op's scheme changes

LEAST_RATE = 0.02  # no op becomes so fast that it takes no time

NOWHERE = 1e-300  # keeps a quotient finite whose divisor is 0


def family(unit: Unit, scheme: OpScheme) -> Family:
    """Return what units of like cost share: op type, mode and weight bits."""
    return unit.type, scheme.mode, scheme.weight_bits


def families(problem: Problem, picks: Picks) -> tuple[Family, ...]:
    """Return the family of each unit's choice."""
    units = zip(problem.space.tunable, picks, strict=True)
    return tuple(family(unit, unit.choices[index]) for unit, index in units)


class CostBelief:
    """The cost of every choice, as a share of the float model's cost.

    A time is OVERHEAD + sum over units of work * rate(family); the rates start from :data:`RATES`
    and are moved by ridge regression on what trials measured.

    Args:
        space: The space.
        objective: What is minimised.

    Attributes:
        exact: The cost is known and not learnt.
        families: What has a rate of its own.
        rates: By family.
    """

    NOISE = 0.02

    def __init__(self, space: TuningSpace, objective: str) -> None:
        self._units = space.tunable
        self._objective = objective
        self.exact = objective not in ("latency", "throughput", "energy")
        self._bytes = _shares_of_float_bytes(space)
        self._work = _shares_of_work(space.tunable)
        self.families = _families(space.tunable)
        self._index = {of: row for row, of in enumerate(self.families)}
        self._prior = np.array([_first_rate(of) for of in self.families])
        self._deviation = np.array([RATES[mode][1] for _, mode, _ in self.families])
        self.rates = self._prior.copy()
        self._covariance = np.diag(self._deviation**2)
        self._rows: list[np.ndarray] = []
        self._seen: list[float] = []
        self._noise: list[float] = []

    def _row(self, picks: Picks) -> np.ndarray:
        """Return the work that a recipe gives to each family."""
        row = np.zeros(len(self.families))
        for unit, work, index in zip(self._units, self._work, picks, strict=True):
            column = self._index[family(unit, unit.choices[index])]
            row[column] += work
        return row

    def observe(self, picks: Picks, trial: Trial) -> None:
        """Take a trial's measured cost, as far as its spread lets it be trusted."""
        share = ratio(trial, self._objective)
        if self.exact or not math.isfinite(share):
            return
        measured = trial.objectives[self._objective]
        width = measured.high - measured.low
        spread = 0.5 * share * width / max(measured.value, NOWHERE)
        self._rows.append(self._row(picks))
        self._seen.append(share)
        self._noise.append(max(self.NOISE, spread))
        self._fit()

    def _fit(self) -> None:
        """Move the rates from their first values to what all trials together say."""
        rows = np.stack(self._rows)
        seen = np.array(self._seen)
        prior = np.diag(self._deviation**2)
        noise = np.diag(np.square(self._noise))
        believed = rows @ prior @ rows.T
        gain = prior @ rows.T @ np.linalg.inv(believed + noise)
        surprise = seen - OVERHEAD - rows @ self._prior
        corrected = self._prior + gain @ surprise
        self.rates = np.maximum(corrected, LEAST_RATE)
        self._covariance = prior - gain @ rows @ prior

    def costs(self) -> list[np.ndarray]:
        """Return the believed cost of every choice.

        Of equal times the backend's order decides: the first is its best.
        """
        if self.exact:
            return self._bytes
        step = TIE / max(1, len(self._work))
        found = []
        for unit, work in zip(self._units, self._work, strict=True):
            columns = [self._index[family(unit, scheme)] for scheme in unit.choices]
            order = np.arange(len(columns))
            found.append(work * self.rates[columns] + step * order)
        return found

    def predict(self, picks: Picks) -> tuple[float, float]:
        """Return mean and deviation of a recipe's cost, as a share of the float model's."""
        if self.exact:
            return total(self._bytes, picks), 0.0
        row = self._row(picks)
        mean = OVERHEAD + float(row @ self.rates)
        variance = float(row @ self._covariance @ row)
        # Rounding may leave it a little below 0.
        return mean, math.sqrt(max(variance, 0.0))


def _shares_of_float_bytes(space: TuningSpace) -> list[np.ndarray]:
    """Return each choice's bytes, as a share of all weights' bytes in float."""
    float_bytes = sum(u.weight_bytes(u.choices[-1]) for u in space.units)
    whole = max(float_bytes, 1e-9)
    return [own / whole for own in weight_bytes(space)]


def _shares_of_work(units: Sequence[Unit]) -> np.ndarray:
    """Return each unit's share of the float model's time, shape (units,)."""
    work = np.array([_work(unit) for unit in units])
    everything = max(work.sum(), 1.0)
    return np.asarray((1.0 - OVERHEAD) * work / everything)


def _families(units: Sequence[Unit]) -> list[Family]:
    found: set[Family] = set()
    for unit in units:
        found.update(family(unit, scheme) for scheme in unit.choices)
    return sorted(found)


def _work(unit: Unit) -> float:
    """Return how much a unit computes, in any unit that is the same for all."""
    # Looking up rows takes no time to speak of, however large the table.
    if unit.type == "embedding":
        return 0.0
    return float(unit.macs or unit.parameters or 1)


def _first_rate(of: Family) -> float:
    _, mode, bits = of
    rate, _ = RATES[mode]
    return rate if bits >= 8 else rate * NARROW


def ratio(trial: Trial, objective: str) -> float:
    """Return a measured objective as a share of the float model's cost (less is better).

    Infinite where it was not measured.
    """
    found = trial.objectives.get(objective)
    if found is None or not found.ratio:
        return float("inf")
    if found.lower_is_better:
        return found.ratio
    return 1.0 / found.ratio
