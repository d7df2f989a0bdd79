"""Which of some trials is the best, and which are beaten by none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo.core.values.trial import Measurement, Trial

NEGLIGIBLE = 0.001
"""Share of the float model's figure that is no gain on it."""

HARDLY = 0.01
"""Share of an objective that decides nothing between two trials.

Files of the same widths differ by about 0.4 % (names, scales, alignment), and latencies of one
model by more from one start to the next. That must not choose a trial over a more accurate one.
"""


@dataclass(frozen=True)
class Step:
    """One objective's part in a choice.

    Attributes:
        objective: Its name.
        left: The trials that were still to be chosen from, those that fell here among them.
        tied: Those of them that tie with the best in it.
    """

    objective: str
    left: tuple[Trial, ...]
    tied: tuple[Trial, ...]


@dataclass(frozen=True)
class Choice:
    """The best trial, and how it was chosen.

    Attributes:
        best: The trial.
        steps: What each objective decided, most important first.
    """

    best: Trial
    steps: tuple[Step, ...]


def choose(
    trials: Sequence[Trial], objectives: Sequence[str], baseline: Trial | None = None
) -> Trial | None:
    """Return the best trial, as :func:`choice` does."""
    found = choice(trials, objectives, baseline)
    return found.best if found is not None else None


def choice(
    trials: Sequence[Trial], objectives: Sequence[str], baseline: Trial | None = None
) -> Choice | None:
    """Return the best passing trial: the best first objective, ties by the next, then by accuracy.

    Two trials tie in an objective if their spreads meet, or if no more than :data:`HARDLY` of it
    lies between them. The best is beaten by no other passing trial in accuracy and every objective
    at once: it lies on the front that :func:`pareto` returns.

    Args:
        trials: All of them.
        objectives: Most important first.
        baseline: The float model, where it is a candidate too: a trial that is not :func:`worth_it`
            is left out, and None is returned where nothing is.
    """
    passing = _passing(trials)
    left = passing
    if baseline is not None:
        left = [t for t in passing if worth_it(t, baseline, objectives)]
    if not left:
        return None
    steps = []
    for name in objectives:
        measured = [t for t in left if name in t.objectives]
        if measured:
            tied = _tied_for_first(measured, name)
            steps.append(Step(name, tuple(measured), tuple(tied)))
            left = tied
    best = max(left, key=_accuracy)
    # Ties are no order: of three that tie in pairs, one may lie behind another in everything.
    return Choice(_unbeaten(best, passing, objectives), tuple(steps))


def contenders(
    trials: Sequence[Trial], objectives: Sequence[str], name: str, most: int
) -> tuple[Trial, ...]:
    """Return the passing trials that may be the best in an objective, the likeliest first.

    Args:
        trials: All of them.
        objectives: Most important first; what is behind in one before ``name`` is no contender.
        name: The objective.
        most: How many at most.
    """
    left = _passing(trials)
    for earlier in objectives:
        left = [t for t in left if earlier in t.objectives]
        if not left or earlier == name:
            break
        left = _tied_for_first(left, earlier)
    figures = _comparable(left, name)
    each = zip(figures, left, strict=True)
    in_order = sorted(each, key=lambda pair: (pair[0].cost, pair[1].number))
    return tuple(trial for _, trial in in_order[:most])


def _passing(trials: Sequence[Trial]) -> list[Trial]:
    # Number 0 is the float model itself.
    candidates = [t for t in trials if t.number > 0]
    return [t for t in candidates if t.passed and t.state == "complete"]


def _accuracy(trial: Trial) -> tuple[float, int]:
    return trial.margin, -trial.number


def _tied_for_first(trials: Sequence[Trial], name: str) -> list[Trial]:
    """Return the trials that tie with the best in an objective that all of them measured."""
    figures = _comparable(trials, name)
    best = min(figures, key=lambda figure: figure.cost)
    each = zip(trials, figures, strict=True)
    return [trial for trial, figure in each if figure.ties(best, HARDLY)]


def _unbeaten(best: Trial, passing: Sequence[Trial], names: Sequence[str]) -> Trial:
    """Return the trial, or the most accurate one that beats it in everything and is not beaten."""
    measured = [t for t in passing if all(name in t.objectives for name in names)]
    points = _points(measured, names)
    at = {t.number: point for t, point in zip(measured, points, strict=True)}
    if best.number not in at:
        return best
    own = at[best.number]
    ahead = [t for t in measured if _is_no_worse(at[t.number], own)]
    front = [t for t in ahead if not _is_beaten(at[t.number], points)]
    # Of trials that are alike in everything the first, as on the front.
    return max(front, key=_accuracy)


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
    by number.

    What is accurate enough and does not pass (over a budget, by less than the noise) may not be
    chosen, and beats none.
    """
    done = []
    for trial in trials:
        is_measured = all(name in trial.objectives for name in objectives)
        may_not_be_chosen = trial.margin >= 0 and not trial.passed
        if trial.state == "complete" and is_measured and not may_not_be_chosen:
            done.append(trial)
    points = _points(done, objectives)
    # Of trials that are alike in everything the first counts.
    first_at: dict[Point, Trial] = {}
    for trial, point in zip(done, points, strict=True):
        first_at.setdefault(point, trial)
    return tuple(t for point, t in first_at.items() if not _is_beaten(point, points))


Point = tuple[float, ...]
"""A trial's margin and objectives, each turned so that lower is better."""


def _points(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Point]:
    columns = [[-trial.margin for trial in trials]]
    for name in objectives:
        figures = _comparable(trials, name)
        columns.append([figure.cost for figure in figures])
    return list(zip(*columns, strict=True))


def _is_beaten(point: Point, points: Sequence[Point]) -> bool:
    return any(other != point and _is_no_worse(other, point) for other in points)


def _is_no_worse(one: Point, other: Point) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


def _comparable(trials: Sequence[Trial], name: str) -> list[Measurement]:
    """Return what was measured of an objective, in one unit.

    These are shares of the float model's figure where all have one, for trials lie minutes apart.
    """
    measured = [trial.objectives[name] for trial in trials]
    if all(figure.ratio is not None for figure in measured):
        return [figure.relative for figure in measured]
    return measured
