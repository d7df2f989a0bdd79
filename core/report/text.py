"""How figures read in a report and on a terminal: one way for each kind, everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.sampling import Sampling
from octavo.core.values.scheme import in_order
from octavo.core.values.trial import Measurement, Trial

_FIGURES = 3
"""Digits that a measurement is worth: timings repeat to a per cent at the best."""

_NUMBERS = ("none", "one", "two", "three")


def size(number: float) -> str:
    """Return bytes as people read them (decimal units)."""
    for unit in ("B", "kB", "MB"):
        if _rounded(abs(number)) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.4g} GB"


def latency(milliseconds: float) -> str:
    """Return a time as people read it: ``85.3 µs``, ``1.52 ms``, ``1.05 s``."""
    found = _rounded(milliseconds)
    if 0 < found < 0.1:
        return f"{_digits(milliseconds * 1000)} µs"
    if found < 1000:
        return f"{_digits(milliseconds)} ms"
    return f"{_digits(milliseconds / 1000)} s"


def duration(seconds: float) -> str:
    """Return how long something takes as people say it: ``45 s``, ``3 min``, ``2.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def figure(value: float, unit: str) -> str:
    """Return a figure with its unit, in the unit's own way of reading."""
    if unit == "bytes":
        return size(value)
    if unit == "ms":
        return latency(value)
    return f"{_digits(value)} {unit}".rstrip()


def measured(measurement: Measurement | None, spread: bool = False) -> str:
    """Return a measurement with its unit, and its quartiles if asked for: ``1.52 ms
    [1.49, 1.60]``."""
    if measurement is None:
        return "-"
    m = measurement
    text = figure(m.value, m.unit)
    if not spread or m.low == m.high:
        return text
    low, high = figure(m.low, m.unit), figure(m.high, m.unit)
    unit = f" {text.split()[-1]}"
    if low.endswith(unit) and high.endswith(unit):
        # Said once where all three have the same.
        low, high = low.removesuffix(unit), high.removesuffix(unit)
    return f"{text} [{low}, {high}]"


def base(measurement: Measurement | None) -> str:
    """Return what the float model took in the same rounds, or a dash."""
    if measurement is None or measurement.base is None:
        return "-"
    return figure(measurement.base, measurement.unit)


def ratio(measurement: Measurement | None) -> str:
    """Return the ratio to the float model, or a dash."""
    if measurement is None or measurement.ratio is None:
        return "-"
    return _digits(measurement.ratio)


def pair(measurement: Measurement | None) -> str:
    """Return a measurement, the float model's of the same rounds, and their ratio:
    ``16.4 ms of 34.8 ms (0.471)``."""
    if measurement is None or measurement.base is None:
        return measured(measurement)
    return f"{measured(measurement)} of {base(measurement)} ({ratio(measurement)})"


def score(trial: Trial | None, metric: str) -> str:
    """Return a trial's score, or a dash."""
    if trial is None or metric not in trial.metrics:
        return "-"
    return f"{trial.metrics[metric]:.5g}"


def scored(trial: Trial | None, metric: str) -> str:
    """Return a trial's score with the samples that it is of and its 95 % interval, where they are
    known: ``0.98887 of 719 samples [0.978, 0.994]``."""
    told = score(trial, metric)
    found = None if trial is None else trial.sampling.get(metric)
    return f"{told} {samples(found)}" if found is not None else told


def sure(trial: Trial | None, metric: str) -> str:
    """Return a trial's score with its 95 % interval, where that is known:
    ``0.98887 [0.978, 0.994]``."""
    told = score(trial, metric)
    found = None if trial is None else trial.sampling.get(metric)
    return f"{told} {interval(found)}" if found is not None else told


def samples(sampling: Sampling) -> str:
    """Return how many samples a score is of and its 95 % interval:
    ``of 719 samples [0.978, 0.994]``."""
    return f"of {sampling.count:,} samples {interval(sampling)}"


def interval(sampling: Sampling) -> str:
    """Return the 95 % interval of a score: ``[0.978, 0.994]``."""
    return f"[{sampling.low:.3g}, {sampling.high:.3g}]"


def difference(trial: Trial, baseline: Trial, metric: str) -> str:
    """Return by how many samples two scores differ: ``one of 719 samples``; '' where samples are
    not right or wrong, or not known."""
    if metric not in trial.metrics or metric not in baseline.metrics:
        return ""
    own, other = trial.sampling.get(metric), baseline.sampling.get(metric)
    return samples_apart(trial.metrics[metric], own, baseline.metrics[metric], other)


def samples_apart(
    value: float, sampling: Sampling | None, other: float, others: Sampling | None
) -> str:
    """Return by how many samples two scores differ; '' where that is not known.

    Args:
        value: A score.
        sampling: Its samples.
        other: Another score.
        others: Its samples; the same ones.
    """
    if sampling is None or others is None:
        return ""
    is_counted = sampling.is_count and others.is_count
    if not is_counted or sampling.count != others.count:
        return ""
    count = sampling.samples_between(value, other)
    return f"{_counted(count)} of {sampling.count:,} samples"


def _counted(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"


def bits(trial: Trial) -> str:
    """Return how many ops a trial quantized, by mode, and what was learned after it:
    ``9 static, 1 float, then qat``."""
    return ", ".join(filter(None, (counts(trial.ledger), learned(trial.recipe))))


def transformed(recipe: Recipe) -> str:
    """Return what a recipe did before quantization: ``after smoothquant -> hadamard``; ''."""
    order = in_order(recipe.transforms)
    return f"after {order}" if order else ""


def learned(recipe: Recipe) -> str:
    """Return what a recipe learned after quantization: ``then reconstruction, distillation``; ''
    for nothing."""
    steps = ", ".join(map(str, recipe.recovery))
    return f"then {steps}" if steps else ""


def left_out(trial: Trial) -> str:
    """Return why a refinement was not scored."""
    before, after = trial.distances["before"], trial.distances["after"]
    return f"left out, no nearer to float ({after:.3g}, {before:.3g} without)"


def counts(ledger: Mapping[str, Applied]) -> str:
    """Return how many ops run in each mode: ``9 static, 1 float, 2 carrying codes``."""
    count = modes(ledger)

    def place(mode: str) -> tuple[bool, int, str]:
        not_quantized = mode in ("float", "carrying codes")
        return not_quantized, -count[mode], mode

    in_order = sorted(count, key=place)
    return ", ".join(f"{count[mode]} {mode.replace('_', '-')}" for mode in in_order)


def modes(ledger: Mapping[str, Applied]) -> dict[str, int]:
    """Return mode -> number of ops; what only moves codes is a mode of its own."""
    count: dict[str, int] = {}
    for line in ledger.values():
        mode = "carrying codes" if line.carries_codes else line.applied.mode
        count[mode] = count.get(mode, 0) + 1
    return count


def _rounded(value: float) -> float:
    """Return a figure to the digits that are shown: the unit is chosen by what a reader sees."""
    return float(f"{value:.{_FIGURES}g}")


def _digits(value: float) -> str:
    """Return a figure to its digits, written out: no power of ten where people write none."""
    told = f"{value:.{_FIGURES}g}"
    if "e" not in told:
        return told
    found = float(told)
    # Beyond these a row of zeros says less than the exponent.
    is_readable = 1e-4 <= abs(found) < 1e7
    return f"{found:,.0f}" if is_readable and abs(found) >= 1 else told
