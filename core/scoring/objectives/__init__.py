"""Built-in objectives: what is measured on a candidate. A plugin module, as a third party would
write one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import Part

from .config import (
    EnergyConfig,
    LatencyConfig,
    MemoryConfig,
    SizeConfig,
    ThroughputConfig,
)


@hookimpl
def octavo_objectives() -> Iterable[Part[Any]]:
    """Offer the built-in objectives."""
    return (
        Part(
            "latency",
            "octavo.core.scoring.objectives.latency:Latency",
            LatencyConfig,
            "milliseconds a batch, interleaved with the float model",
        ),
        Part(
            "throughput",
            "octavo.core.scoring.objectives.latency:Throughput",
            ThroughputConfig,
            "samples a second",
        ),
        Part(
            "energy",
            "octavo.core.scoring.objectives.energy:Energy",
            EnergyConfig,
            "millijoules a call, where RAPL or NVML is there",
        ),
        Part(
            "size",
            "octavo.core.scoring.objectives.size:Size",
            SizeConfig,
            "bytes of the saved model",
        ),
        Part(
            "memory",
            "octavo.core.scoring.objectives.memory:Memory",
            MemoryConfig,
            "peak memory of a fresh process that loads and runs it",
        ),
    )
