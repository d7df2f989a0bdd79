"""The bound on the loss: against simulation, the exact binomial bound, and a closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom

from octavo.core.contract.criterion import SampleGoal
from octavo.core.errors import EvaluationError
from octavo.core.scoring.certificate import BETS, LEAD, Certifier, OtherSamples


def goal(
    tolerance: float = 0.05, mode: str = "absolute", **settings: object
) -> SampleGoal:
    told = {"higher_is_better": True, "confidence": 0.95, **settings}
    return SampleGoal(tolerance, mode, **told)  # type: ignore[arg-type]


def population(
    random: np.random.Generator,
    samples: int,
    lost: float,
    won: float = 0.0,
    right: float = 0.9,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw (float, candidate) answers that are right or wrong; ``lost`` and ``won`` are shares of
    all samples."""
    kinds = random.choice(4, samples, p=[right - lost, lost, won, 1 - right - won])
    return np.isin(kinds, (0, 1)).astype(float), np.isin(kinds, (0, 2)).astype(float)


@pytest.mark.parametrize("mode", ["absolute", "relative"])
@pytest.mark.parametrize("higher", [True, False])
def test_a_loss_just_over_the_goal_is_certified_in_at_most_5_of_100(
    mode: str, higher: bool
) -> None:
    """First winners are judged at half of the error; with the search's samples as the lead, as in a
    run."""
    random = np.random.default_rng(0)
    false = 0
    for _ in range(400):
        first = population(random, 300, 0.07, 0.019)
        other = population(random, 300, 0.07, 0.019)
        if not higher:  # an error rate: 0.1 of the float model, 0.151 of the candidate
            first, other = ((1 - f, 1 - c) for f, c in (first, other))
        tolerance = 0.05 if mode == "absolute" else (0.05 / 0.9 if higher else 0.5)
        certifier = Certifier(goal(tolerance, mode, higher_is_better=higher), first[0])
        false += certifier.holds(first[1], lead=OtherSamples(*other))
    # A binomial of 400 at 2.5 % is above 20 in less than 1 of 1000.
    assert false <= 20


def test_the_guarantee_survives_looking_after_every_sample() -> None:
    random = np.random.default_rng(1)
    false = 0
    for _ in range(200):
        reference, scores = population(random, 400, 0.05)
        looks = (
            Certifier(goal(), reference[:n]).holds(scores[:n])
            for n in range(20, 401, 20)
        )
        false += any(looks)
    assert false / 200 <= 0.05


def test_the_guarantee_survives_choosing_among_many_and_examining_one_after_the_other() -> (
    None
):
    """Thirty candidates, all over the goal; the luckiest of the search are examined until one is
    certified."""
    random = np.random.default_rng(2)
    false = 0
    for _ in range(100):
        reference = (random.random(600) < 0.9).astype(float)
        scores = [
            np.where(reference == 1, random.random(600) >= 0.0578, 0.0)
            for _ in range(30)
        ]
        search, held = slice(0, 300), slice(300, 600)
        order = sorted(range(30), key=lambda i: -scores[i][search].mean())
        certifier = Certifier(goal(), reference[held])
        found = (
            certifier.holds(
                scores[i][held].astype(float),
                j,
                OtherSamples(reference[search], scores[i][search].astype(float)),
            )
            for j, i in enumerate(order[:6], 1)
        )
        false += any(found)
    assert false / 100 <= 0.05 + 0.05


@pytest.mark.parametrize(
    ("samples", "failures"), [(500, 0), (500, 5), (1000, 20), (300, 30)]
)
def test_it_is_no_tighter_than_the_exact_bound_and_not_much_wider(
    samples: int, failures: int
) -> None:
    """Where the float model is always right, the loss is a binomial share: Clopper and Pearson
    1934."""
    scores = np.ones(samples)
    scores[np.random.default_rng(3).permutation(samples)[:failures]] = 0.0
    exact = brentq(lambda p: binom.cdf(failures, samples, p) - 0.025, 1e-9, 1 - 1e-9)
    bound = Certifier(goal(), np.ones(samples)).certify(scores).bound
    assert bound is not None
    assert exact <= bound <= 1.8 * exact


def test_where_nothing_differs_the_capital_has_a_closed_form() -> None:
    """No sample differs: each factor is 1 + b t / (1 - t), so K_n is a sum of powers; the bound
    solves K_n = 2 / error."""
    n = 400

    def capital(t: float) -> float:
        return float(np.mean((1 + BETS * t / (1 - t)) ** n))

    expected = brentq(lambda t: np.log(capital(t)) - np.log(2 / 0.05), 1e-6, 0.5)
    bound = Certifier(goal(), np.ones(n)).certify(np.ones(n)).bound
    assert bound == pytest.approx(expected, rel=1e-6)
    with_lead = (
        Certifier(goal(), np.ones(n))
        .certify(np.ones(n), lead=OtherSamples(np.ones(n), np.ones(n)))
        .bound
    )
    assert with_lead is not None
    assert with_lead < expected
    # Bets alone cannot do better than the largest one with all of the capital.
    assert with_lead > brentq(
        lambda t: n * np.log(1 + t / (1 - t)) - np.log(2 / 0.05), 1e-6, 0.5
    )
    assert 0 < LEAD < 1


@pytest.mark.parametrize("tolerance", [0.02, 0.05])
def test_as_many_samples_as_it_asks_for_are_enough_and_fewer_are_not(
    tolerance: float,
) -> None:
    needed = Certifier(goal(tolerance), np.ones(50)).samples_needed()
    assert needed > 50

    def holds(n: int) -> bool:
        return Certifier(goal(tolerance), np.ones(n)).holds(
            np.ones(n), lead=OtherSamples(np.ones(n), np.ones(n))
        )

    assert holds(round(needed * 1.1))
    assert not holds(round(needed * 0.6))


def test_scores_between_the_ends_need_a_range_and_are_bounded_with_it() -> None:
    random = np.random.default_rng(4)
    reference = random.uniform(0.5, 1.0, 2000)
    with pytest.raises(EvaluationError, match="score_range"):
        Certifier(goal(), reference)
    scores = np.clip(reference - random.normal(0.01, 0.02, 2000), -1, 1)
    found = Certifier(goal(0.03, score_range=(-1.0, 1.0)), reference).certify(scores)
    assert found.holds
    assert found.bound is not None
    assert 0.01 < found.bound < 0.03
    with pytest.raises(EvaluationError, match="outside the range"):
        Certifier(goal(score_range=(0.0, 1.0)), reference).certify(scores + 0.5)


def test_a_later_winner_needs_more() -> None:
    reference, scores = population(np.random.default_rng(5), 2000, 0.01)
    bounds = [
        Certifier(goal(), reference).certify(scores, tries).bound for tries in (1, 2, 5)
    ]
    assert None not in bounds
    assert bounds == sorted(bounds)  # type: ignore[type-var]
    assert bounds[0] < bounds[2]  # type: ignore[operator]
