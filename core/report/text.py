"""How numbers read in a report and on a terminal."""

from __future__ import annotations

from octavo.core.values.trial import Measurement, Trial


def size(number: float) -> str:
    """Return bytes as people read them (decimal units)."""
    for unit in ("B", "kB", "MB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.4g} GB"


def measured(measurement: Measurement | None, spread: bool = False) -> str:
    """Return a measurement with its unit, and its quartiles if asked for: ``1.52 ms
    [1.49, 1.60]``."""
    if measurement is None:
        return "-"
    m = measurement
    if m.unit == "bytes":
        return size(m.value)
    text = f"{m.value:.3g} {m.unit}".rstrip()
    return f"{text} [{m.low:.3g}, {m.high:.3g}]" if spread and m.low != m.high else text


def relative(measurement: Measurement | None) -> str:
    """Return a measurement with its share of the float model's: ``1.52 ms (0.25)``."""
    shown = measured(measurement)
    if measurement is None or measurement.ratio is None:
        return shown
    return f"{shown} ({measurement.ratio:.2f})"


def ratio(measurement: Measurement | None) -> str:
    """Return the ratio to the float model, or a dash."""
    if measurement is None or measurement.ratio is None:
        return "-"
    return f"{measurement.ratio:.3g}"


def score(trial: Trial | None, metric: str) -> str:
    """Return a trial's score, or a dash."""
    if trial is None or metric not in trial.metrics:
        return "-"
    return f"{trial.metrics[metric]:.5g}"


def bits(trial: Trial) -> str:
    """Return how many ops a trial quantized, by mode: ``9 static, 1 float``."""
    count: dict[str, int] = {}
    for line in trial.ledger.values():
        mode = "carrying codes" if line.carries_codes else line.applied.mode
        count[mode] = count.get(mode, 0) + 1

    def place(mode: str) -> tuple[bool, int, str]:
        not_quantized = mode in ("float", "carrying codes")
        return not_quantized, -count[mode], mode

    told = [
        f"{count[mode]} {mode.replace('_', '-')}" for mode in sorted(count, key=place)
    ]
    return ", ".join(told)
