"""What a few evaluations teach about units: beliefs about losses and about costs, updated by every trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace, Unit
from octavo.core.values.trial import Trial

Picks = tuple[int, ...]
Family = tuple[str, str, int]
HOPELESS = 1e6  # a loss that no knapsack takes


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return rows of different lengths as one matrix, shape (units, most choices)."""
    table = np.zeros((len(rows), max(map(len, rows), default=0)))
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


class LossBelief:
    """A Gaussian belief about how much loss each unit adds, in tolerated losses.

    The loss of a recipe is taken as sum_u theta_u * proxy_u(choice). Before a trial, theta_u = scale * (1 + e_u): the scale
    is unknown, e_u is a proxy's own error. Each trial (1 - margin is its loss) moves the scale and, by Gaussian
    conditioning, the units that its recipe put to the test. Trials far from the goal say little about it: a score
    saturates, and a proxy is not proportional to a loss over decades; their error is taken to grow with the distance.

    Args:
        proxies: For each unit, the proxy loss of each choice, >= 0.
        spread: Standard deviation of e_u.
    """

    NOISE = 0.03  # of a score, in tolerated losses
    DISTANT = 0.3  # error of a loss for each tolerated loss of distance from the goal
    COMMON = 0.15  # error of the scale that is left, as a share

    def __init__(self, proxies: Sequence[np.ndarray], spread: float = 0.4) -> None:
        self._proxies = [np.asarray(p, dtype=np.float64) for p in proxies]
        self._table = padded(self._proxies)
        self._spread = spread
        self._rows: list[np.ndarray] = []
        self._losses: list[float] = []
        self.scale = 0.0
        self._solved = np.zeros(0)
        self._kernel = np.zeros((0, 0))
        self.theta = np.ones(len(proxies))

    def _row(self, picks: Picks) -> np.ndarray:
        return np.asarray(self._table[np.arange(len(picks)), picks])

    def observe(self, picks: Picks, loss: float) -> None:
        """Take a trial's loss, in tolerated losses."""
        row = self._row(picks)
        if row.sum() <= 0:
            return
        self._rows.append(row)
        self._losses.append(loss)
        rows, losses = np.stack(self._rows), np.array(self._losses)
        sums = rows.sum(axis=1)
        ratios = np.log(np.maximum(losses, 0.02) / sums)
        weights = 1.0 / (0.05 + np.log(np.maximum(losses, 0.02)) ** 2)
        self.scale = float(np.exp((weights * ratios).sum() / weights.sum()))
        errors = self.NOISE + self.DISTANT * np.abs(losses - 1.0)
        self._kernel = self._covariance(rows, rows) + np.diag(errors**2)
        self._solved = np.linalg.solve(self._kernel, losses - self.scale * sums)
        unit = self.scale**2 * (self._spread**2 * rows + self.COMMON**2 * sums[:, None])
        self.theta = np.maximum(self.scale + self._solved @ unit, 0.1 * self.scale)

    def guess(self, loss: float) -> None:
        """Believe, for want of a trial, that the worst choices everywhere lose this much."""
        self.scale = loss / max(
            float(np.where(self._table < HOPELESS, self._table, 0.0).max(axis=1).sum()), 1e-300
        )
        self.theta = np.full(len(self._proxies), self.scale)

    def _covariance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        common = self.COMMON**2 * np.outer(a.sum(axis=1), b.sum(axis=1))
        return np.asarray(self.scale**2 * (self._spread**2 * (a @ b.T) + common))

    @property
    def known(self) -> bool:
        """True once a trial has given the scale."""
        return bool(self._rows)

    def losses(self) -> list[np.ndarray]:
        """Return the believed loss of every choice of every unit."""
        return [t * p for t, p in zip(self.theta, self._proxies, strict=True)]

    def predict(self, picks: Picks) -> tuple[float, float]:
        """Return mean and standard deviation of a recipe's loss."""
        row = self._row(picks)[None]
        rows = np.stack(self._rows)
        cross = self._covariance(row, rows)[0]
        mean = self.scale * float(row.sum()) + float(cross @ self._solved)
        variance = float(
            self._covariance(row, row)[0, 0] - cross @ np.linalg.solve(self._kernel, cross)
        )
        return mean, math.sqrt(max(variance, 0.0) + self.NOISE**2)


# Time of an op over its float time, before anything was measured; a trial corrects it. (mean, standard deviation)
RATES: Mapping[str, tuple[float, float]] = {
    "float": (1.0, 0.0),
    "static": (0.35, 0.12),
    "dynamic": (0.45, 0.15),
    "cast": (0.6, 0.2),
    "weight_only": (0.95, 0.15),
}
TIE = 1e-6
OVERHEAD = 0.1  # share of the float time that no op's scheme changes


def family(unit: Unit, scheme: OpScheme) -> Family:
    """Return what units of like cost share: op type, mode and weight bits."""
    return unit.type, scheme.mode, scheme.weight_bits


class CostBelief:
    """The cost of every choice, as a share of the float model's cost; sizes are known, times are learnt.

    A time is OVERHEAD + sum over units of work * rate(family); the rates start from :data:`RATES` and are moved by ridge
    regression on what trials measured.

    Args:
        space: The space.
        objective: What is minimised.
    """

    NOISE = 0.02

    def __init__(self, space: TuningSpace, objective: str) -> None:
        self._space = space
        self._objective = objective
        self.exact = objective not in ("latency", "throughput", "energy")
        bytes_ = [np.array([u.weight_bytes(s) for s in u.choices]) for u in space.tunable]
        total = max(sum(u.weight_bytes(u.choices[-1]) for u in space.units), 1e-9)
        self._bytes = [b / total for b in bytes_]
        # Looking up rows takes no time to speak of, however large the table.
        work = np.array(
            [
                0.0 if u.type == "embedding" else float(u.macs or u.parameters or 1)
                for u in space.tunable
            ]
        )
        self._work = (1.0 - OVERHEAD) * work / max(work.sum(), 1.0)
        self.families = sorted({family(u, s) for u in space.tunable for s in u.choices})
        self._index = {f: i for i, f in enumerate(self.families)}
        self._prior = np.array(
            [RATES[f[1]][0] * (1.0 if f[2] >= 8 else 1.02) for f in self.families]
        )
        self._deviation = np.array([RATES[f[1]][1] for f in self.families])
        self.rates = self._prior.copy()
        self._covariance = np.diag(self._deviation**2)
        self._rows: list[np.ndarray] = []
        self._seen: list[float] = []
        self._noise: list[float] = []

    def _row(self, picks: Picks) -> np.ndarray:
        row = np.zeros(len(self.families))
        for u, w, i in zip(self._space.tunable, self._work, picks, strict=True):
            row[self._index[family(u, u.choices[i])]] += w
        return row

    def observe(self, picks: Picks, trial: Trial) -> None:
        """Take a trial's measured cost, as far as its spread lets it be trusted."""
        share = ratio(trial, self._objective)
        if self.exact or not math.isfinite(share):
            return
        measured = trial.objectives[self._objective]
        self._rows.append(self._row(picks))
        self._seen.append(share)
        self._noise.append(
            max(
                self.NOISE,
                0.5 * share * (measured.high - measured.low) / max(measured.value, 1e-300),
            )
        )
        rows = np.stack(self._rows)
        prior = np.diag(self._deviation**2)
        gain = (
            prior @ rows.T @ np.linalg.inv(rows @ prior @ rows.T + np.diag(np.square(self._noise)))
        )
        self.rates = np.maximum(
            self._prior + gain @ (np.array(self._seen) - OVERHEAD - rows @ self._prior), 0.02
        )
        self._covariance = prior - gain @ rows @ prior

    def costs(self) -> list[np.ndarray]:
        """Return the believed cost of every choice. Of equal times the backend's order decides: the first is its best."""
        if self.exact:
            return self._bytes
        found = []
        for u, w in zip(self._space.tunable, self._work, strict=True):
            rates = np.array([self.rates[self._index[family(u, s)]] for s in u.choices])
            found.append(w * rates + TIE / max(1, len(self._work)) * np.arange(len(rates)))
        return found

    def predict(self, picks: Picks) -> tuple[float, float]:
        """Return mean and standard deviation of a recipe's cost, as a share of the float model's."""
        if self.exact:
            return sum(float(b[i]) for b, i in zip(self._bytes, picks, strict=True)), 0.0
        row = self._row(picks)
        return OVERHEAD + float(row @ self.rates), math.sqrt(
            max(float(row @ self._covariance @ row), 0.0)
        )


def ratio(trial: Trial, objective: str) -> float:
    """Return a measured objective as a share of the float model's cost (less is better); inf where it was not measured."""
    found = trial.objectives.get(objective)
    if found is None or not found.ratio:
        return float("inf")
    return found.ratio if found.lower_is_better else 1.0 / found.ratio
