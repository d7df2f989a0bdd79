import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.errors import ConfigError, EvaluationError
from octavo.core.scoring.evaluation import Evaluation
from octavo.core.scoring.racing import Race, RaceConfig, Rejection, SampleScore

N = 600


def flips(random, scores, down, up):
    other = scores.copy()
    other[random.choice(np.flatnonzero(scores == 1), down, replace=False)] = 0
    other[random.choice(np.flatnonzero(scores == 0), up, replace=False)] = 1
    return other


@pytest.fixture
def floats():
    return (np.random.default_rng(0).random(N) < 0.9).astype(float)


def test_a_bad_candidate_is_rejected_after_few_samples(floats):
    asked = []

    def score(indices):
        asked.append(indices)
        return np.zeros(len(indices))

    result = Race(floats, 0.01, 1.0).run(score)
    assert isinstance(result, Rejection)
    assert result.share < 0.2
    assert result.used == sum(map(len, asked))
    assert result.doubt <= 0.05
    assert "rejected after" in result.reason


def test_a_good_candidate_is_scored_in_full_and_each_sample_once(floats):
    seen = []

    def score(indices):
        seen.extend(indices)
        return floats[indices]

    result = Race(floats, 0.01, 1.0, config=RaceConfig(batch=37)).run(score)
    assert isinstance(result, Evaluation)
    assert sorted(seen) == list(range(N))
    np.testing.assert_array_equal(result.per_sample, floats)
    assert result.value == pytest.approx(floats.mean())


def test_a_loss_is_raced_in_its_own_direction():
    floats = np.random.default_rng(0).exponential(1.0, N)
    worse, better = floats + 0.5, floats * 0.5
    race = Race(floats, 0.01, 0.0, higher_is_better=False)
    rejected = race.run(lambda i: worse[i])
    assert isinstance(rejected, Rejection)
    assert rejected.value == pytest.approx(worse.mean(), abs=1e-6)
    assert isinstance(race.run(lambda i: better[i]), Evaluation)


def test_false_rejections_stay_below_the_setting_at_the_boundary(floats):
    # Candidates that lose exactly what is allowed: the hardest ones that must not be rejected.
    random = np.random.default_rng(1)
    allowed = int(0.02 * N)
    rejected = 0
    for seed in range(1000):
        up = int(random.integers(0, 40))
        other = flips(random, floats, up + allowed, up)
        result = Race(
            floats,
            allowed / N,
            1.0,
            config=RaceConfig(error=0.1, first=1, batch=1000, seed=seed),
        ).run(lambda i, o=other: o[i])
        # One look at the whole path: the bound holds at every sample at once.
        rejected += isinstance(result, Rejection)
    for seed in range(1000):
        other = flips(random, floats, allowed + 5, 5)
        result = Race(
            floats,
            allowed / N,
            1.0,
            config=RaceConfig(error=0.1, first=8, batch=8, seed=seed),
        ).run(lambda i, o=other: o[i])
        rejected += isinstance(result, Rejection)
    assert rejected / 2000 < 0.1


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.sampled_from([0.0, 0.01, 0.1]))
@settings(max_examples=60, deadline=None)
def test_certain_rejections_are_certain(seed, batch, allowed):
    # With no room for error only proof counts: whatever passes on all samples is never rejected.
    random = np.random.default_rng(seed)
    floats = random.integers(0, 2, 60).astype(float)
    other = random.integers(0, 2, 60).astype(float)
    result = Race(
        floats, allowed, 1.0, config=RaceConfig(error=1e-12, first=1, batch=batch)
    ).run(lambda i: other[i])
    if (floats - other).mean() <= allowed:
        assert isinstance(result, Evaluation)


def test_the_order_is_fixed_by_the_seed(floats):
    orders = [
        Race(floats, 0.1, 1.0, config=RaceConfig(seed=s)).order.tolist()
        for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_a_float_score_beyond_the_best_is_refused():
    with pytest.raises(ConfigError, match="better than the best"):
        Race(np.array([0.5, 1.5]), 0.1, 1.0)


def test_a_sample_score_scores_all_samples_when_it_is_called():
    score = SampleScore(lambda model, indices: model * indices, 5)
    result = score(2.0)
    assert result.value == 4.0
    np.testing.assert_array_equal(result.per_sample, [0, 2, 4, 6, 8])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda i: 1.0, "one number for each index"),
        (lambda i: np.full(len(i), np.nan), "not finite"),
    ],
)
def test_a_sample_score_is_checked(returned, message):
    with pytest.raises(EvaluationError, match=message):
        SampleScore(lambda model, indices: returned(indices), 4)(None)


def test_samples_with_much_to_gain_come_early_and_let_a_loss_be_raced():
    # Negative log-likelihoods with a long tail: a uniform order would have to expect a tail to
    # vanish to the very end.
    random = np.random.default_rng(3)
    floats = random.exponential(2.0, 1500)
    race = Race(floats, 0.02, 0.0, higher_is_better=False)
    assert (
        floats[race.order[:300]].mean()
        > floats.mean()
        > floats[race.order[-300:]].mean()
    )
    shares = []
    for seed in range(20):
        worse = np.maximum(
            0.0, floats + np.random.default_rng(seed).normal(0.06, 0.2, 1500)
        )
        result = Race(
            floats, 0.02, 0.0, higher_is_better=False, config=RaceConfig(seed=seed)
        ).run(lambda i, o=worse: o[i])
        shares.append(result.share if isinstance(result, Rejection) else 1.0)
        if isinstance(result, Rejection):
            assert result.value == pytest.approx(worse.mean(), abs=0.1)
    assert np.mean(shares) < 0.5


def test_weighted_draws_keep_the_error_rate_at_the_boundary():
    # The loss sits where it is drawn last or first: nothing but the weights decides when it is
    # seen.
    rejected = 0
    random = np.random.default_rng(4)
    for seed in range(600):
        floats = random.exponential(1.0, 200)
        other = (
            floats
            + np.where((floats < 0.2) if seed % 2 else (floats > 2.0), 0.5, 0.0)
            + random.normal(0, 0.05, 200)
        )
        other = np.maximum(0.0, other)
        allowed = max(0.0, float((other - floats).mean())) + 1e-9
        race = Race(
            floats,
            allowed,
            0.0,
            higher_is_better=False,
            config=RaceConfig(error=0.1, first=8, batch=8, seed=seed),
        )
        rejected += isinstance(race.run(lambda i, o=other: o[i]), Rejection)
    assert rejected / 600 < 0.1
