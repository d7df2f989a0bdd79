"""Distances of outputs: against their formulas in plain NumPy, and draws against their Hessians."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.contract.output_losses import divergence
from octavo.core.contract.output_metric import OutputKind, OutputMetric, plain

RANDOM = np.random.default_rng(0)


def metric(
    kind: OutputKind, y: np.ndarray, mask: np.ndarray | None = None
) -> OutputMetric:
    rows = y.reshape(-1, y.shape[-1])
    count = len(rows) if mask is None else mask.sum()
    return OutputMetric(
        (kind,), (rows.var(axis=0),), (y.ndim - 1,), (float(count),), (mask,)
    )


def softmax(y: np.ndarray) -> np.ndarray:
    powers = np.exp(y - y.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def kl(y: np.ndarray, y0: np.ndarray) -> np.ndarray:
    p, q = softmax(y0), softmax(y)
    return (p * (np.log(p) - np.log(q))).sum(axis=-1)


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 100.0])
def test_the_divergence_is_exact_from_the_smallest_changes_to_the_largest(size) -> None:
    y0 = RANDOM.normal(0, 3, (64, 20))
    y = y0 + size * RANDOM.normal(size=y0.shape)
    found = divergence(y.astype(np.float32), y0.astype(np.float32))
    exact = kl(y.astype(np.float32).astype(float), y0.astype(np.float32).astype(float))
    np.testing.assert_allclose(found, exact, rtol=3e-3 if size < 1e-3 else 1e-4)


def test_a_small_change_costs_what_the_fisher_metric_says() -> None:
    y0 = RANDOM.normal(0, 2, (32, 12)).astype(np.float32)
    d = 1e-3 * RANDOM.normal(size=y0.shape)
    p = softmax(y0.astype(float))
    fisher = ((p * d * d).sum(axis=1) - (p * d).sum(axis=1) ** 2) / 2
    losses = metric("kl", y0).losses(0, (y0 + d).astype(np.float32), y0, 0)
    assert losses == pytest.approx(fisher.sum(), rel=1e-3)


def test_masked_words_and_words_of_no_chance_at_all_do_no_harm() -> None:
    y0 = RANDOM.normal(size=(8, 6)).astype(np.float32)
    y = y0 + np.float32(0.1)
    y[:, 2] += 0.5
    expected = metric("kl", y0).losses(0, y, y0, 0)
    wide0 = np.concatenate([y0, np.full((8, 2), -np.inf, np.float32)], axis=1)
    wide = np.concatenate([y, np.full((8, 2), -np.inf, np.float32)], axis=1)
    assert metric("kl", wide0).losses(0, wide, wide0, 0) == pytest.approx(expected)


def test_probabilities_are_compared_as_what_they_are() -> None:
    y0 = RANDOM.normal(0, 2, (16, 5))
    y = y0 + 0.1 * RANDOM.normal(size=y0.shape)
    p0, p = softmax(y0).astype(np.float32), softmax(y).astype(np.float32)
    found = metric("probabilities", p0).losses(0, p, p0, 0)
    assert found == pytest.approx(kl(y, y0).sum(), rel=1e-3)


def test_embeddings_are_compared_by_their_angle() -> None:
    y0 = RANDOM.normal(size=(16, 32)).astype(np.float32)
    y = y0 + 0.01 * RANDOM.normal(size=y0.shape).astype(np.float32)
    a, b = y0.astype(float), y.astype(float)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    expected = (1 - (a * b).sum(axis=1) / lengths).sum()
    assert metric("cosine", y0).losses(0, y, y0, 0) == pytest.approx(expected, rel=1e-3)
    # Length means nothing.
    assert metric("cosine", y0).losses(0, 3 * y0, y0, 0) == pytest.approx(0, abs=1e-9)


def test_numbers_of_any_scale_count_alike() -> None:
    scale = np.array([1e-4, 1.0, 1e5])
    y0 = (RANDOM.normal(size=(200, 3)) * scale).astype(np.float32)
    y = (y0 + 0.1 * scale * RANDOM.normal(size=y0.shape)).astype(np.float32)
    difference = (y.astype(float) - y0) ** 2
    shares = difference / y0.var(axis=0, dtype=float)
    found = metric("variance", y0).losses(0, y, y0, 0)
    assert found == pytest.approx(shares.mean(axis=1).sum(), rel=1e-3)
    for column in range(3):
        one = y0.copy()
        one[:, column] = y[:, column]
        assert 0.2 < metric("variance", y0).losses(0, one, y0, 0) / found < 0.5


def test_padding_counts_nothing_whatever_it_holds() -> None:
    y0 = RANDOM.normal(size=(2, 5, 7)).astype(np.float32)
    y = y0 + 0.1 * RANDOM.normal(size=y0.shape).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    by = metric("kl", y0, mask)
    y[0, 3:] = np.nan
    expected = kl(y.astype(float), y0.astype(float))[mask]
    assert by.losses(0, y, y0, 0) * by.weight(0) == pytest.approx(
        expected.mean(), rel=1e-4
    )
    drawn = by.draw(0, y0, 0, 1)
    assert not drawn[0, 3:].any()
    assert drawn[1].any()


def hessian(kind: OutputKind, y0: np.ndarray) -> np.ndarray:
    """Return H of one row, by hand."""
    if kind == "kl":
        p = softmax(y0)
        return np.diag(p) - np.outer(p, p)
    if kind == "probabilities":
        return np.diag(1 / y0)
    if kind == "cosine":
        unit = y0 / np.linalg.norm(y0)
        return (np.eye(len(y0)) - np.outer(unit, unit)) / np.square(y0).sum()
    return np.diag(2 / np.array([0.5, 2.0, 8.0, 1.0])) / 4


@pytest.mark.parametrize("kind", ["kl", "probabilities", "cosine", "variance"])
def test_draws_have_the_hessian_of_the_distance(kind) -> None:
    row = (
        np.array([0.4, 0.3, 0.2, 0.1])
        if kind == "probabilities"
        else RANDOM.normal(size=4)
    )
    y0 = np.tile(row, (4000, 1)).astype(np.float32)
    spread = np.array([0.5, 2.0, 8.0, 1.0], np.float32)
    by = OutputMetric((kind,), (spread,), (1,), (1.0,), ())
    drawn = by.draw(0, y0, 0, seed=3).astype(float)
    expected = hessian(kind, row)
    np.testing.assert_allclose(
        drawn.T @ drawn / len(drawn), expected, atol=0.06 * np.abs(expected).max()
    )
    # And the distance of a small change is half of it.
    d = 1e-2 * np.array([1.0, -2.0, 0.5, 0.5])
    loss = by.losses(0, (y0[:1] + d).astype(np.float32), y0[:1], 0)
    assert loss == pytest.approx(d @ expected @ d / 2, rel=0.05)
    # Another seed and another batch are other draws, the same ones the same.
    assert np.array_equal(drawn, by.draw(0, y0, 0, seed=3))
    assert not np.array_equal(drawn, by.draw(0, y0, 1, seed=3))
    assert not np.array_equal(drawn, by.draw(0, y0, 0, seed=4))


def test_the_plain_distance_is_half_the_share_of_all_variance_together() -> None:
    first, second = RANDOM.normal(size=(6, 3)), 5 + RANDOM.normal(size=(6, 4))
    outputs = [first.astype(np.float32), second.astype(np.float32)]
    changed = [
        (y + 0.1 * RANDOM.normal(size=y.shape)).astype(np.float32) for y in outputs
    ]
    by = plain(outputs, 0)
    error = sum(np.square(a - b).sum() for a, b in zip(changed, outputs, strict=True))
    power = sum(np.square(y - y.mean()).sum() for y in outputs)
    assert float(by.distance(changed, outputs, 0)) == pytest.approx(
        error / (2 * power), rel=1e-4
    )
    words = plain([np.zeros((2, 3, 9), np.float32), outputs[0]], 9)
    assert words.kinds == ("kl", "none")
