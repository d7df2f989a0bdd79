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
        own, base = [], []
        for _ in range(self.config.rounds):
            base.append(
                _joules(lambda: reference.candidate.run(reference.batch), read, self.config.block)
            )
            own.append(
                _joules(lambda: subject.candidate.run(subject.batch), read, self.config.block)
            )
        low, middle, high = np.percentile(np.array(own) * 1e3, [25, 50, 75])
        ratio = float(np.median(np.array(own) / np.maximum(base, 1e-12)))
        return Measurement(float(middle), float(low), float(high), self.unit, ratio)


def counter() -> Callable[[], dict[str, tuple[float, float]]]:
    """Return a function that reads {counter: (joules, joules at which it wraps)}.

    Raises:
        ConfigError: If the machine exposes none, or does not let this user read it.
    """
    packages = [
        p
        for p in sorted(POWERCAP.glob("*-rapl:*"))
        if p.name.count(":") == 1 and _readable(p / "energy_uj")
    ]
    if packages:
        return lambda: {
            p.name: (_number(p / "energy_uj") * 1e-6, _number(p / "max_energy_range_uj") * 1e-6)
            for p in packages
        }
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]

        pynvml.nvmlInit()
        cards = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
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
    call: Callable[[], object], read: Callable[[], dict[str, tuple[float, float]]], seconds: float
) -> float:
    call()
    before, count, end = read(), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        call()
        count += 1
    after = read()
    # A RAPL counter wraps round at its range.
    spent = sum(
        (after[k][0] - before[k][0]) % after[k][1]
        if after[k][1] != float("inf")
        else after[k][0] - before[k][0]
        for k in after
    )
    return spent / count


def _readable(path: Path) -> bool:
    try:
        _number(path)
    except OSError:
        return False
    return True


def _number(path: Path) -> float:
    return float(path.read_text())
