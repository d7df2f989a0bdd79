"""Settings of the built-in objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octavo.core.contract.parts import PartConfig


class TimedConfig(PartConfig):
    """How calls are timed.

    Attributes:
        rounds: How often the float model and the candidate take turns.
        block: Least seconds that each turn lasts, so that one's idle threads do not disturb the
            other.
        batch_size: Rows of the timed batch; None takes the first calibration batch as it is.
    """

    rounds: int = Field(default=5, ge=3)
    block: float = Field(default=0.03, gt=0)
    batch_size: int | None = Field(default=None, ge=1)


class LatencyConfig(TimedConfig):
    """Wall time of one call."""

    kind: Literal["latency"] = "latency"


class ThroughputConfig(TimedConfig):
    """Samples a second."""

    kind: Literal["throughput"] = "throughput"


class SizeConfig(PartConfig):
    """Bytes of the saved model's files."""

    kind: Literal["size"] = "size"


class MemoryConfig(PartConfig):
    """Peak resident memory of a fresh process, beyond what it held before loading the model."""

    kind: Literal["memory"] = "memory"


class EnergyConfig(PartConfig):
    """Energy of one call, from the processor's or the graphics card's own counter.

    Attributes:
        rounds: How often the float model and the candidate take turns.
        block: Least seconds that each turn lasts; the counters tick about every millisecond.
    """

    kind: Literal["energy"] = "energy"
    rounds: int = Field(default=3, ge=3)
    block: float = Field(default=0.5, gt=0)
