"""Which of some trials is the best, and which are beaten by none."""

from __future__ import annotations

from collections.abc import Sequence

from .trial import Measurement, Trial

NEGLIGIBLE = 0.001  # share of an objective that is worth less than any difference in the next


def choose(trials: Sequence[Trial], objectives: Sequence[str]) -> Trial | None:
    """Return the best passing trial: the best first objective, ties by the next, then by accuracy.

    Two trials tie in an objective if their spreads meet: noise decides nothing. Where a further objective is left to decide, so do
    trials that :data:`NEGLIGIBLE` separates, such as the few bytes by which files of the same widths differ.
    """
    left = [t for t in trials if t.number > 0 and t.passed and t.state == "complete"]
    if not left:
        return None
    for position, name in enumerate(objectives, 1):
        slack = NEGLIGIBLE if position < len(objectives) else 0.0
        measured = [t for t in left if name in t.objectives]
        if measured:
            figures = _comparable(measured, name)
            best = min(figures, key=lambda m: m.cost)
            left = [t for t, m in zip(measured, figures, strict=True) if m.ties(best, slack)]
    return max(left, key=lambda t: (t.margin, -t.number))


def pareto(trials: Sequence[Trial], objectives: Sequence[str]) -> tuple[Trial, ...]:
    """Return the trials that no other one beats in margin and every objective at once, by number."""
    done = [t for t in trials if t.state == "complete" and all(n in t.objectives for n in objectives)]
    figures = [_comparable(done, name) for name in objectives]
    points = [(-t.margin, *(column[i].cost for column in figures)) for i, t in enumerate(done)]

    def beaten(i: int) -> bool:
        return any(q != points[i] and all(a <= b for a, b in zip(q, points[i], strict=True)) for q in points)

    seen: set[tuple[float, ...]] = set()
    front = []
    for i, t in enumerate(done):
        if not beaten(i) and points[i] not in seen:
            seen.add(points[i])
            front.append(t)
    return tuple(front)


def _comparable(trials: Sequence[Trial], name: str) -> list[Measurement]:
    """Return what was measured of an objective; as shares of the float model's figure where there are those, for trials lie minutes apart."""
    measured = [t.objectives[name] for t in trials]
    return [m.relative for m in measured] if all(m.ratio is not None for m in measured) else measured
