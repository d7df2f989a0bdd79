"""One sentence on why a trial is the best: which objective decided, and what ties."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.core.values.trial import Measurement, Trial

from .choice import Choice, Step

FEW = 3
"""So many of the trials that tie are named."""


def why_best(found: Choice, rounds: int = 0) -> str:
    """Say in one sentence why this trial is the best.

    Args:
        found: The choice.
        rounds: Of the last timing, in which the best few took turns; 0 where there was none.
    """
    best = found.best
    passing = len(found.steps[0].left) if found.steps else 1
    if passing == 1:
        return f"Trial {best.number} is the only one that passes."
    decided = next((step for step in found.steps if len(step.tied) == 1), None)
    said = [_ties_before(found.steps, decided)]
    if decided is not None and decided.tied[0].number == best.number:
        said.append(_first(best, decided))
    else:
        said.append(_most_accurate(best, found.steps[-1].tied if found.steps else ()))
    timed = f" (timed again in turns, {rounds} rounds)" if rounds else ""
    sentence = "; ".join(filter(None, said))
    return f"{sentence[0].upper()}{sentence[1:]}{timed}."


def _ties_before(steps: Sequence[Step], decided: Step | None) -> str:
    """Say what ties in the objectives that decided nothing."""
    told = []
    for step in steps:
        if step is decided:
            break
        if len(step.tied) > 1:
            told.append(f"in {step.objective} {_range(step)}")
    if not told:
        return ""
    return f"{_names(steps[len(told) - 1].tied)} tie {' and '.join(told)}"


def _range(step: Step) -> str:
    """Return what the tied trials measured: from the least to the most."""
    values = sorted(_share(t.objectives[step.objective]) for t in step.tied)
    of_float = _of_float(step)
    low, high = f"{values[0]:.3g}", f"{values[-1]:.3g}"
    return f"({low}{of_float})" if low == high else f"({low} to {high}{of_float})"


def _first(best: Trial, step: Step) -> str:
    """Say that a trial is ahead in an objective, and of which one."""
    name = step.objective
    own = best.objectives[name]
    others = [t for t in step.left if t.number != best.number]
    what = _superlative(name, own)
    told = f"trial {best.number} is {what}: {_share(own):.3g}{_of_float(step)}"
    if not others:
        return told
    following = min(others, key=lambda t: t.objectives[name].relative.cost)
    return f"{told} against {_share(following.objectives[name]):.3g} of trial {following.number}"


def _most_accurate(best: Trial, tied: Sequence[Trial]) -> str:
    others = [t for t in tied if t.number != best.number]
    if others and len(others) == len(tied):
        taken = max(others, key=lambda t: (t.margin, -t.number))
        return (
            f"trial {best.number} is no worse in accuracy and in everything than trial "
            f"{taken.number}, which would be taken of them"
        )
    closest = max(others, key=lambda t: (t.margin, -t.number), default=None)
    if closest is None:
        return f"trial {best.number} is beaten by none"
    if closest.margin == best.margin:
        is_first = best.number < closest.number
        why = (
            "was tried first"
            if is_first
            else "is ahead of it in the figures themselves"
        )
        return f"as accurate as trial {closest.number}, trial {best.number} {why}"
    if closest.margin > best.margin:
        return f"trial {best.number} is beaten by none in accuracy and all objectives"
    metric = next(iter(best.metrics), "")
    if metric not in closest.metrics:
        return f"trial {best.number} is the most accurate of them"
    own, other = best.metrics[metric], closest.metrics[metric]
    apart = _samples(best, metric, own, other)
    figures = f"{metric} {own:.5g} against {other:.5g} of trial {closest.number}{apart}"
    return f"trial {best.number} is the most accurate of them: {figures}"


def _samples(best: Trial, metric: str, own: float, other: float) -> str:
    """Say how many samples two scores lie apart, where samples are right or wrong."""
    sampling = best.sampling.get(metric)
    if sampling is None or not sampling.is_count:
        return ""
    return f", {sampling.samples_between(own, other)} of {sampling.count} samples"


def _superlative(name: str, measured: Measurement) -> str:
    known = {
        "latency": "the fastest",
        "throughput": "the fastest",
        "size": "the smallest",
    }
    best = "lowest" if measured.lower_is_better else "highest"
    return known.get(name, f"the one of the {best} {name}")


def _share(measured: Measurement) -> float:
    return measured.relative.value


def _of_float(step: Step) -> str:
    """Return ``of float's``, where the figures are shares of the float model's."""
    figure = step.tied[0].objectives[step.objective]
    if figure.ratio is None:
        return f" {figure.unit}".rstrip()
    is_time = step.objective == "latency"
    return " of float's time" if is_time else f" of float's {step.objective}"


def _names(trials: Sequence[Trial]) -> str:
    numbers = [str(t.number) for t in trials[:FEW]]
    more = len(trials) - FEW
    if more > 0:
        return f"trials {', '.join(numbers)} and {more} more"
    return f"trials {', '.join(numbers[:-1])} and {numbers[-1]}"
