"""How much loss a recipe is believed to add, corrected by every evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .picks import Picks

HOPELESS = 1e6  # a loss that no knapsack takes

COLLAPSED = 100.0
"""Tolerated losses that a trial counts for at most: a score that has collapsed says no more."""

LEAST_LOSS = 0.02  # of what is tolerated: the logarithm of less says nothing

SOFTENED = 0.05  # keeps the weight of a trial that lies just on the goal finite

LEAST_SHARE = 0.1  # of the scale: below it no unit's own factor falls


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return rows of different lengths as one matrix, shape (units, most choices)."""
    most = max(map(len, rows), default=0)
    table = np.zeros((len(rows), most))
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


class LossBelief:
    """A Gaussian belief about how much loss each unit adds, in tolerated losses.

    The loss of a recipe is taken as sum_u theta_u * proxy_u(choice). Before a trial, theta_u =
    scale * (1 + e_u): the scale is unknown, e_u is a proxy's own error. Each trial (1 - margin is
    its loss) moves the scale and, by Gaussian conditioning, the units that its recipe put to the
    test. Trials far from the goal say little about it: a score saturates, and a proxy is not
    proportional to a loss over decades; their error is taken to grow with the distance.

    Args:
        proxies: For each unit, the proxy loss of each choice, >= 0.
        spread: Standard deviation of e_u.

    Attributes:
        scale: Tolerated losses for each unit of proxy loss.
        theta: The same for each unit, shape (units,).
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
        self._solved: np.ndarray = np.zeros(0)
        self._kernel = np.zeros((0, 0))
        self.theta = np.ones(len(proxies))

    def _row(self, picks: Picks) -> np.ndarray:
        """Return the proxy loss of each unit under a recipe, shape (units,)."""
        units = np.arange(len(picks))
        return np.asarray(self._table[units, picks])

    def observe(self, picks: Picks, loss: float) -> None:
        """Take a trial's loss, in tolerated losses."""
        row = self._row(picks)
        if row.sum() <= 0:
            return
        self._rows.append(row)
        self._losses.append(loss)
        self._fit()

    def _fit(self) -> None:
        """Set the scale and each unit's factor to what all trials together say."""
        rows = np.stack(self._rows)
        losses = np.array(self._losses)
        sums = rows.sum(axis=1)
        self.scale = _scale(losses, sums)
        believed = self.scale * sums
        # A score that has collapsed shows less than was lost: then the belief is what is far.
        distances = np.maximum(np.abs(losses - 1.0), np.abs(believed - 1.0))
        errors = self.NOISE + self.DISTANT * distances
        noise = np.diag(errors**2)
        self._kernel = self._covariance(rows, rows) + noise
        surprise = losses - believed
        self._solved = np.linalg.solve(self._kernel, surprise)
        # The covariance of each unit's factor with each trial's loss.
        own = self._spread**2 * rows
        common = self.COMMON**2 * sums[:, None]
        cross = self.scale**2 * (own + common)
        least = LEAST_SHARE * self.scale
        corrected = self.scale + self._solved @ cross
        self.theta = np.maximum(corrected, least)

    def guess(self, loss: float) -> None:
        """Believe, for want of a trial, that the worst choices everywhere lose this much."""
        possible = np.where(self._table < HOPELESS, self._table, 0.0)
        worst = float(possible.max(axis=1).sum())
        self.scale = loss / max(worst, 1e-300)
        self.theta = np.full(len(self._proxies), self.scale)

    def _covariance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the covariance of the losses of two lists of recipes, from their proxy rows."""
        own = self._spread**2 * (a @ b.T)
        sums_of_a = a.sum(axis=1)
        sums_of_b = b.sum(axis=1)
        common = self.COMMON**2 * np.outer(sums_of_a, sums_of_b)
        return np.asarray(self.scale**2 * (own + common))

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
        prior_mean = self.scale * float(row.sum())
        mean = prior_mean + float(cross @ self._solved)
        prior = self._covariance(row, row)[0, 0]
        explained = cross @ np.linalg.solve(self._kernel, cross)
        # Rounding may leave it a little below 0.
        variance = max(float(prior - explained), 0.0)
        deviation = math.sqrt(variance + self.NOISE**2)
        return mean, deviation


def _scale(losses: np.ndarray, sums: np.ndarray) -> float:
    """Return the loss for a unit of proxy loss: a mean of logarithms, those near the goal first.

    Args:
        losses: Of the trials, in tolerated losses, shape (trials,).
        sums: The proxy losses of their recipes, shape (trials,).
    """
    told = np.maximum(losses, LEAST_LOSS)
    distance = np.log(told)  # 0 on the goal
    ratios = np.log(told / sums)
    weights = 1.0 / (SOFTENED + distance**2)
    mean = (weights * ratios).sum() / weights.sum()
    return float(np.exp(mean))
