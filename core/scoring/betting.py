"""Capital of those who bet against a claim: what races and certificates have in common.

The sources of the method are named in :mod:`~octavo.core.scoring.racing` and
:mod:`~octavo.core.scoring.certificate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BETS = np.array([0.05, 0.15, 0.4, 0.95])
"""Shares of the largest bet that the fixed bettors stake. Small ones win against noisy small
losses, large ones against plain ones."""
_EACH_FIXED = 0.5 / len(BETS)

SHARES = np.log(np.array([0.5, *[_EACH_FIXED] * len(BETS)]))
"""Logarithms of the shares of the capital: the learning bettor's, and the fixed ones'."""

BOLDEST = 0.95
"""Share of the largest bet that the learning bettor stakes: one bad draw must not ruin it."""


def largest_capital(paths: np.ndarray) -> float:
    """Return the logarithm of the largest capital on the way.

    Args:
        paths: Logarithm of each bettor's capital after each sample, shape (bettors, samples).
    """
    # The logarithm of a sum of exponentials, without overflow.
    top = paths.max(axis=0)
    below_top = np.exp(paths - top)
    total = top + np.log(below_top.sum(axis=0))
    return float(total.max())


@dataclass
class Bettors:
    """One who learns what to bet, and some with fixed bets.

    Attributes:
        first: Sum of y / (samples left).
        second: Sum of its squares.
        capital: Logarithm of each one's capital.
    """

    first: float = 0.0
    second: float = 0.0
    capital: np.ndarray = field(default_factory=lambda: SHARES.copy())

    def log_capital(self, gain: np.ndarray, room: np.ndarray) -> float:
        """Let every bettor play, and return the logarithm of the largest capital on the way.

        Args:
            gain: y of each draw, per sample left.
            room: The most that -y can be, per sample left.
        """
        learned = self._bets(gain, room) * gain
        share_of_room = gain / room
        fixed = BETS[:, None] * share_of_room
        stakes = np.concatenate([[learned], fixed])
        # A stake of exactly -1 would lose all, and its logarithm would be -inf for good.
        growth = np.log1p(np.maximum(stakes, -1.0 + 1e-12))
        paths = self.capital[:, None] + np.cumsum(growth, axis=1)
        self.capital = paths[:, -1]
        return largest_capital(paths)

    def _bets(self, gain: np.ndarray, room: np.ndarray) -> np.ndarray:
        """Return the bet on each draw from what came before it: mean / second moment.

        The first lies half-way between its bounds.
        """
        squares = gain * gain
        first = self.first + np.cumsum(gain)
        second = self.second + np.cumsum(squares)
        mean_before = np.maximum(first - gain, 0.0)
        # A quarter of the largest square stands in for what has not been seen yet.
        unseen = 0.25 * room * room
        moment_before = np.maximum(unseen + second - squares, 1e-300)
        self.first = float(first[-1])
        self.second = float(second[-1])
        wanted = mean_before / moment_before
        boldest = BOLDEST / room
        return np.asarray(np.minimum(wanted, boldest))
