"""Which of some trials is the best, and which are beaten by none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from octavo.core.values.trial import Measurement, Trial

NEGLIGIBLE = 0.001
"""Share of the first objective that is worth less than any difference in the next."""

HARDLY = 0.01
"""Share of a further objective that decides nothing between trials which tie in those before it.

Files of the same widths differ by about 0.4 % (names, scales, alignment). Where latencies tie, that
must not choose a trial that may be slower over one that is more accurate.
"""


def choose(
    trials: Sequence[Trial], objectives: Sequence[str], baseline: Trial | None = None
) -> Trial | None:
    """Return the best passing trial: the best first objective, ties by the next, then by accuracy.

    Two trials tie in an objective if their spreads meet: noise decides nothing. So do trials that a
    small share separates, :data:`NEGLIGIBLE` of the first objective and :data:`HARDLY` of those
    after it.

    Args:
        trials: All of them.
        objectives: Most important first.
        baseline: The float model, where it is a candidate too: a trial that is not :func:`worth_it`
            is left out, and None is returned where nothing is.
    """
    left = [t for t in trials if t.number > 0 and t.passed and t.state == "complete"]
    if baseline is not None:
        left = [t for t in left if worth_it(t, baseline, objectives)]
    if not left:
        return None
    for position, name in enumerate(objectives):
        measured = [t for t in left if name in t.objectives]
        if measured:
            figures = _comparable(measured, name)
            best = min(figures, key=lambda m: m.cost)
            slack = _slack(position, len(objectives))
            left = [t for t, m in zip(measured, figures, strict=True) if m.ties(best, slack)]
    return max(left, key=lambda t: (t.margin, -t.number))


def _slack(position: int, count: int) -> float:
    """Return the share of an objective that decides nothing; where it is the only one, every byte
    counts."""
    if position > 0:
        return HARDLY
    return NEGLIGIBLE if count > 1 else 0.0


def worth_it(trial: Trial, baseline: Trial | None, objectives: Sequence[str]) -> bool:
    """Return whether a trial improves on the float model beyond what was measured as noise.

    The first objective decides in which the two do not tie. One that ties in all of them is no
    improvement.

    Args:
        trial: A trial that was measured.
        baseline: The float model's trial, measured against itself: its spread is what noise amounts
            to. None for who does not know it: then shares of its figures are compared with 1.
        objectives: Most important first; those that cannot be compared decide nothing.
    """
    known: Mapping[str, Measurement] = baseline.objectives if baseline is not None else {}
    pairs = [
        (trial.objectives[name], known.get(name)) for name in objectives if name in trial.objectives
    ]
    pairs = [(own, base) for own, base in pairs if base is not None or own.ratio is not None]
    signs = (_better(own, base) for own, base in pairs)
    return next((sign > 0 for sign in signs if sign), not pairs)


def _better(own: Measurement, base: Measurement | None) -> int:
    """Return 1 if a measurement is better than the float model's beyond both spreads, -1 if worse,
    0 if they tie."""
    if own.ratio is not None:
        low, high = own.relative.low, own.relative.high
        spread = (1.0, 1.0)
        if base is not None and base.ratio is not None:
            # Turns of the float model with itself: what they differ from 1 is noise.
            spread = (min(1.0, base.relative.low), max(1.0, base.relative.high))
    else:
        assert base is not None
        low, high, spread = own.low, own.high, (base.low, base.high)
    if high < spread[0] * (1 - NEGLIGIBLE):
        return 1 if own.lower_is_better else -1
    if low > spread[1] * (1 + NEGLIGIBLE):
        return -1 if own.lower_is_better else 1
    return 0


def compared(trial: Trial, objectives: Sequence[str]) -> str:
    """Return in words what a trial has of the float model's figures: ``0.80 of float's speed, 1.02
    of its size``."""
    told: list[str] = []
    for name in objectives:
        found = trial.objectives.get(name)
        if found is None or found.ratio is None or not found.ratio:
            continue
        share = 1 / found.ratio if name == "latency" else found.ratio
        what = "speed" if name in ("latency", "throughput") else name
        whose = "its" if told else "float's"
        told.append(f"{share:.2f} of {whose} {what}")
    return ", ".join(told)


def pareto(trials: Sequence[Trial], objectives: Sequence[str]) -> tuple[Trial, ...]:
    """Return the trials that no other one beats in margin and every objective at once,
    by number."""
    done = [
        t for t in trials if t.state == "complete" and all(n in t.objectives for n in objectives)
    ]
    figures = [_comparable(done, name) for name in objectives]
    points = [(-t.margin, *(column[i].cost for column in figures)) for i, t in enumerate(done)]

    def beaten(i: int) -> bool:
        return any(
            q != points[i] and all(a <= b for a, b in zip(q, points[i], strict=True))
            for q in points
        )

    seen: set[tuple[float, ...]] = set()
    front = []
    for i, t in enumerate(done):
        if not beaten(i) and points[i] not in seen:
            seen.add(points[i])
            front.append(t)
    return tuple(front)


def _comparable(trials: Sequence[Trial], name: str) -> list[Measurement]:
    """Return what was measured of an objective; as shares of the float model's figure where there
    are those, for trials lie minutes apart."""
    measured = [t.objectives[name] for t in trials]
    return (
        [m.relative for m in measured] if all(m.ratio is not None for m in measured) else measured
    )
