"""Racing: measured false rejections and saved samples. Run it as ``python -m benchmarks.racing``.

10,000 simulated candidates for each kind of score. Bars: among candidates that pass on all samples,
fewer are rejected early than the setting allows; at an error of 0.05, at least half of the samples
of those that miss the goal are saved.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from octavo.core.scoring.racing import Race, RaceConfig, Rejection

SAMPLES = 1500
CANDIDATES = 10_000


def reference(
    kind: str, random: np.random.Generator
) -> tuple[np.ndarray, float, float, bool]:
    """Return the float model's scores, the best score, the allowed mean loss and the direction."""
    if kind == "accuracy":
        scores = (random.random(SAMPLES) < 0.9).astype(float)
        return scores, 1.0, 0.01 * scores.mean(), True
    if kind == "reciprocal rank":
        scores = np.where(
            random.random(SAMPLES) < 0.75, 1.0, 1.0 / random.integers(2, 30, SAMPLES)
        )
        return scores, 1.0, 0.005 * scores.mean(), True
    scores = random.exponential(2.0, SAMPLES)
    return scores, 0.0, 0.01 * scores.mean(), False


def candidate(
    kind: str, scores: np.ndarray, severity: float, random: np.random.Generator
) -> np.ndarray:
    """Return a candidate's scores: it changes some samples for the worse and, fewer, for the
    better."""
    touched = random.random(len(scores))
    if kind == "accuracy":
        flipped = np.where(touched < 0.01 * severity, 0.0, scores)
        return np.where((touched > 0.99) & (scores == 0), 1.0, flipped)
    if kind == "reciprocal rank":
        rank = np.rint(1.0 / scores)
        worse = np.where(
            touched < 0.02 * severity, rank + random.integers(1, 5, len(scores)), rank
        )
        return 1.0 / np.maximum(1.0, np.where(touched > 0.98, worse - 1, worse))
    return np.maximum(0.0, scores + random.normal(0.02 * severity, 0.2, len(scores)))


def at_the_boundary(
    kind: str, scores: np.ndarray, allowed: float, random: np.random.Generator
) -> np.ndarray:
    """Return a candidate that loses as much as is allowed and no more: the hardest to tell from one
    that misses."""
    if kind == "likelihood":
        other = np.maximum(0.0, scores + random.normal(0.02, 0.2, len(scores)))
        return other * ((scores.mean() + allowed - 1e-12) / other.mean())
    right, wrong = np.flatnonzero(scores == 1), np.flatnonzero(scores == 0)
    up = int(random.integers(0, len(wrong)))
    down = up + int(allowed * len(scores))
    other = scores.copy()
    other[random.choice(right, down, replace=False)] = 0.0
    other[random.choice(wrong, up, replace=False)] = 1.0
    return other


def row(kind: str, error: float, boundary: bool) -> bool:
    """Race all candidates, print a line, return whether the bar is kept."""
    random = np.random.default_rng(1)
    scores, best, allowed, higher = reference(kind, random)
    passing, false, missing, spent = 0, 0, 0, 0.0
    saved, clear = [], []
    for number in range(CANDIDATES):
        if boundary:
            other = at_the_boundary(kind, scores, allowed, random)
        else:
            other = candidate(kind, scores, float(random.uniform(0.0, 4.0)), random)
        loss = float((scores - other).mean()) * (1 if higher else -1)
        race = Race(
            scores,
            allowed,
            best,
            higher_is_better=higher,
            config=RaceConfig(error=error, seed=number),
        )
        began = time.perf_counter()
        result = race.run(lambda indices, other=other: other[indices])
        spent += time.perf_counter() - began
        rejected = isinstance(result, Rejection)
        if loss <= allowed:
            passing += 1
            false += rejected
        else:
            missing += 1
            share = 1 - result.share if isinstance(result, Rejection) else 0.0
            saved.append(share)
            if loss > 2 * allowed:
                clear.append(share)
    rate = false / passing
    shares = (
        f"{np.mean(saved):>6.0%} {np.mean(clear):>11.0%}"
        if saved
        else f"{'-':>6} {'-':>11}"
    )
    name = f"{kind}, boundary" if boundary else kind
    kept = rate < error and (boundary or error != 0.05 or float(np.mean(saved)) >= 0.5)
    verdict = "ok" if kept else "MISSED"
    print(
        f"{name:<20} {error:>6.2f} {passing:>6} {false:>8} = {rate:<6.2%} {missing:>6} {shares} "
        f"{1e3 * spent / CANDIDATES:>7.2f} ms   {verdict}",
        flush=True,
    )
    return kept


def main() -> int:
    print(
        f"{CANDIDATES} candidates a row, {SAMPLES} samples each; losses from 0 to 4 times what is "
        "allowed, or exactly what is allowed"
    )
    print(
        f"{'score':<20} {'error':>6} {'pass':>6} {'rejected of them':>17} {'miss':>6} "
        f"{'saved':>6} {'saved at 2x':>11} {'time each':>10}   bar"
    )
    rows = [
        (kind, 0.05, False) for kind in ("accuracy", "reciprocal rank", "likelihood")
    ]
    rows += [
        ("accuracy", 0.01, False),
        ("accuracy", 0.1, False),
        ("accuracy", 0.05, True),
        ("likelihood", 0.05, True),
    ]
    kept = [row(*r) for r in rows]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
