"""How sums by channels and all together make one estimate."""

from collections.abc import Callable

import numpy as np
import pytest

from octavo.core.sensitivity.draws import _Sums, _weighed

COUNT = 16
WEIGHTS = 60


def sums_of(draw: Callable[[np.random.Generator], np.ndarray]) -> dict[str, _Sums]:
    """Return the sums of one change of each weight, from what its channels add to g . d."""
    random = np.random.default_rng(7)
    found = {}
    for number in range(WEIGHTS):
        # (draws, channels)
        shares = draw(random)
        by_channel = float(np.square(shares).sum())
        whole = float(np.square(shares.sum(axis=1)).sum())
        found[str(number)] = _Sums(by_channel, whole)
    return found


def test_what_chance_does_is_left_to_the_steady_sum() -> None:
    sums = sums_of(lambda random: random.standard_normal((COUNT, 64)))
    estimates = _weighed(sums, COUNT, WEIGHTS)
    for label, found in sums.items():
        assert estimates[label] == pytest.approx(found.by_channel / COUNT)
        # All together scatters by a third: taken as it is, it would be far off.
    apart = [found.whole / found.by_channel for found in sums.values()]
    assert np.std(np.log(apart)) > 0.25


def test_channels_that_move_together_are_taken_together() -> None:
    def alike(random: np.random.Generator) -> np.ndarray:
        return np.repeat(random.standard_normal((COUNT, 1)), 8, axis=1)

    sums = sums_of(alike)
    estimates = _weighed(sums, COUNT, WEIGHTS)
    ratios = [estimates[label] * COUNT / found.whole for label, found in sums.items()]
    # Eight equal shares: the square of their sum is 8 times the sum of their squares.
    assert np.median(ratios) == pytest.approx(1.0, abs=0.15)
    assert min(ratios) > 0.5
