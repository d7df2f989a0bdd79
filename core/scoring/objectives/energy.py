"""Energy of a call, from a hardware counter: RAPL (Linux powercap) for processors, NVML for NVIDIA
cards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from octavo.core.contract.objective import Objective, Subject
from octavo.core.errors import ConfigError
from octavo.core.values.trial import Measurement

from .config import EnergyConfig

POWERCAP = Path("/sys/class/powercap")


class Energy(Objective):
    """Median millijoules a call of everything the counter covers, the float model and the candidate
    taking turns."""

    unit = "mJ"
    config: EnergyConfig

    def check(self) -> None:
        """Refuse a machine without a counter."""
        counter()

    def measure(self, subject: Subject, reference: Subject) -> Measurement:
        """Return the median with its quartiles, and the ratio of the medians."""
        read = counter()
        seconds = self.config.block
        own: list[float] = []
        base: list[float] = []
        for _ in range(self.config.rounds):
            base.append(_joules(_call_of(reference), read, seconds))
            own.append(_joules(_call_of(subject), read, seconds))
        millijoules = np.array(own) * 1e3
        low, middle, high = np.percentile(millijoules, [25, 50, 75])
        ratio = float(np.median(np.array(own) / np.maximum(base, 1e-12)))
        return Measurement(float(middle), float(low), float(high), self.unit, ratio)


Reading = dict[str, tuple[float, float]]
"""Counter -> (joules, joules at which it wraps)."""


def _call_of(subject: Subject) -> Callable[[], object]:
    return lambda: subject.candidate.run(subject.batch)


def counter() -> Callable[[], Reading]:
    """Return a function that reads {counter: (joules, joules at which it wraps)}.

    Raises:
        ConfigError: If the machine exposes none, or does not let this user read it.
    """
    packages = []
    for path in sorted(POWERCAP.glob("*-rapl:*")):
        # Parts of a package have two colons; its own counter holds theirs.
        is_package = path.name.count(":") == 1
        if is_package and _readable(path / "energy_uj"):
            packages.append(path)
    if packages:
        return lambda: {path.name: _read_package(path) for path in packages}
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]

        pynvml.nvmlInit()
        cards = [
            pynvml.nvmlDeviceGetHandleByIndex(i)
            for i in range(pynvml.nvmlDeviceGetCount())
        ]
        for card in cards:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    except Exception as error:
        raise ConfigError(
            "objective 'energy': this machine exposes no energy counter that this user may read "
            "(RAPL under "
            f"{POWERCAP}, or NVML with nvidia-ml-py: {error}); leave it out, or run where there "
            "is one"
        ) from error
    return lambda: {
        str(i): (pynvml.nvmlDeviceGetTotalEnergyConsumption(c) * 1e-3, float("inf"))
        for i, c in enumerate(cards)
    }


def _joules(
    call: Callable[[], object], read: Callable[[], Reading], seconds: float
) -> float:
    """Return the joules of a call: of all that fit into so many seconds, after one to warm up."""
    call()
    before = read()
    count = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        call()
        count += 1
    after = read()
    spent = 0.0
    for name, (joules, wraps_at) in after.items():
        difference = joules - before[name][0]
        # A RAPL counter wraps round at its range.
        spent += difference if wraps_at == float("inf") else difference % wraps_at
    return spent / count


def _read_package(path: Path) -> tuple[float, float]:
    joules = _number(path / "energy_uj") * 1e-6
    wraps_at = _number(path / "max_energy_range_uj") * 1e-6
    return joules, wraps_at


def _readable(path: Path) -> bool:
    try:
        _number(path)
    except OSError:
        return False
    return True


def _number(path: Path) -> float:
    return float(path.read_text())
