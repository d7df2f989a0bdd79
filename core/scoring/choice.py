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
    # Number 0 is the float model itself.
    candidates = [t for t in trials if t.number > 0]
    left = [t for t in candidates if t.passed and t.state == "complete"]
    if baseline is not None:
        left = [t for t in left if worth_it(t, baseline, objectives)]
    if not left:
        return None
    for position, name in enumerate(objectives):
        measured = [t for t in left if name in t.objectives]
        if measured:
            slack = _slack(position, len(objectives))
            left = _tied_for_first(measured, name, slack)
    return max(left, key=lambda t: (t.margin, -t.number))


def _tied_for_first(trials: Sequence[Trial], name: str, slack: float) -> list[Trial]:
    """Return the trials that tie with the best in an objective that all of them measured."""
    figures = _comparable(trials, name)
    best = min(figures, key=lambda figure: figure.cost)
    each = zip(trials, figures, strict=True)
    return [trial for trial, figure in each if figure.ties(best, slack)]


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
    known: Mapping[str, Measurement] = {}
    if baseline is not None:
        known = baseline.objectives
    is_compared = False
    for name in objectives:
        own = trial.objectives.get(name)
        base = known.get(name)
        if own is None or (base is None and own.ratio is None):
            continue
        is_compared = True
        sign = _better(own, base)
        if sign:
            return sign > 0
    # Where nothing can be compared, nothing speaks against the trial.
    return not is_compared


def _better(own: Measurement, base: Measurement | None) -> int:
    """Compare a measurement with the float model's.

    Returns:
        1 if it is better beyond both spreads, -1 if worse, 0 if they tie.
    """
    if own.ratio is not None:
        figure = own.relative
        base_low, base_high = _spread_of_ones(base)
    else:
        assert base is not None
        figure = own
        base_low, base_high = base.low, base.high
    is_below = figure.high < base_low * (1 - NEGLIGIBLE)
    is_above = figure.low > base_high * (1 + NEGLIGIBLE)
    if not is_below and not is_above:
        return 0
    return 1 if is_below == own.lower_is_better else -1


def _spread_of_ones(base: Measurement | None) -> tuple[float, float]:
    """Return the range of what the float model measures as a share of itself."""
    if base is None or base.ratio is None:
        return 1.0, 1.0
    # Turns of the float model with itself: what they differ from 1 is noise.
    turns = base.relative
    return min(1.0, turns.low), max(1.0, turns.high)


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
    done = []
    for trial in trials:
        is_measured = all(name in trial.objectives for name in objectives)
        if trial.state == "complete" and is_measured:
            done.append(trial)
    # Each trial is a point whose coordinates are all better when lower.
    columns = [[-trial.margin for trial in done]]
    for name in objectives:
        figures = _comparable(done, name)
        columns.append([figure.cost for figure in figures])
    points = list(zip(*columns, strict=True))
    # Of trials that are alike in everything the first counts.
    first_at: dict[tuple[float, ...], Trial] = {}
    for trial, point in zip(done, points, strict=True):
        first_at.setdefault(point, trial)
    return tuple(t for point, t in first_at.items() if not _is_beaten(point, points))


def _is_beaten(point: tuple[float, ...], points: Sequence[tuple[float, ...]]) -> bool:
    for other in points:
        is_no_worse = all(a <= b for a, b in zip(other, point, strict=True))
        if other != point and is_no_worse:
            return True
    return False


def _comparable(trials: Sequence[Trial], name: str) -> list[Measurement]:
    """Return what was measured of an objective, in one unit.

    These are shares of the float model's figure where all have one, for trials lie minutes apart.
    """
    measured = [trial.objectives[name] for trial in trials]
    if all(figure.ratio is not None for figure in measured):
        return [figure.relative for figure in measured]
    return measured
