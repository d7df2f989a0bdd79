"""What one calibration pass observed. Streamed, mergeable, bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from array_api_compat import array_namespace

from .errors import DataError, nearest
from .numerics.affine import Array
from .scheme import PartChoice, QuantSpec

if TYPE_CHECKING:
    from .calibrators.base import Calibrator


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing to observe: a value, the calibrator that watches it, and along which axis (None: the whole tensor)."""

    value: str
    calibrator: PartChoice
    axis: int | None = None


class Statistics:
    """Observers of activation values, fed by ``Session.observe`` through :meth:`update`.

    Args:
        probes: What to observe.
        make: Builds the calibrator of a probe.
    """

    def __init__(self, probes: Iterable[Probe], make: Callable[[Probe], Calibrator]) -> None:
        self._observers: dict[Probe, Calibrator] = {probe: make(probe) for probe in dict.fromkeys(probes)}
        self._by_value: dict[str, list[Calibrator]] = {}
        for probe, observer in self._observers.items():
            self._by_value.setdefault(probe.value, []).append(observer)
        self.batches = 0
        self.seen: dict[str, int] = {}

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the values to observe."""
        return tuple(self._by_value)

    @property
    def observers(self) -> Mapping[Probe, Calibrator]:
        """Observers by probe."""
        return self._observers

    def update(self, value: str, x: Array) -> None:
        """Take one array of one value; the sink of ``Session.observe``.

        Raises:
            DataError: If it is not finite.
        """
        xp = array_namespace(x)
        if not bool(xp.all(xp.isfinite(x))):
            raise DataError(
                f"value {value!r} is not finite in calibration batch {self.seen.get(value, 0)}: the float model itself overflows there; "
                "check the batch, or keep the op that writes it out of the calibration data's range"
            )
        self.seen[value] = self.seen.get(value, 0) + 1
        for observer in self._by_value.get(value, ()):
            observer.update(x)

    def merge(self, other: Statistics) -> None:
        """Take in another worker's statistics over the same probes."""
        for probe, observer in other._observers.items():
            self._observers[probe].merge(observer)
        self.batches += other.batches
        for value, count in other.seen.items():
            self.seen[value] = self.seen.get(value, 0) + count

    def range(self, value: str, calibrator: PartChoice, spec: QuantSpec, axis: int | None = None) -> tuple[Array, Array]:
        """Return the (low, high) of a value, float32, shape () or (channels,).

        Raises:
            DataError: If the value was not observed that way.
        """
        observer = self._observers.get(Probe(value, calibrator, axis))
        if observer is None:
            known = {p.value for p in self._observers}
            raise DataError(f"value {value!r} was not observed with {calibrator} (axis {axis}){nearest(value, known)}")
        return observer.range(spec)
