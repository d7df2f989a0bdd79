"""What one calibration pass observed. Streamed, mergeable, bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass

from array_api_compat import array_namespace

from .calibrators.base import Calibrator, Observer
from .calibrators.minmax import MinMax
from .errors import DataError, nearest
from .numerics.affine import Array
from .numerics.rows import Rows
from .scheme import MINMAX, PartChoice, QuantSpec


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing to observe.

    Attributes:
        value: Name of the value.
        calibrator: Who watches it; with ``rows`` the name of what is watched: ``gram``, ``channel_range``, ``channel_mean``.
        axis: Channel axis for one range per channel; None for the whole tensor.
        rows: How an op reads the value, where its input features are watched.
    """

    value: str
    calibrator: PartChoice
    axis: int | None = None
    rows: Rows | None = None


class Statistics:
    """Observers of activation values, fed by ``Session.observe`` through :meth:`update`.

    Args:
        probes: What to observe.
        make: Builds the observer of a probe.
    """

    def __init__(self, probes: Iterable[Probe], make: Callable[[Probe], Observer]) -> None:
        self._observers: dict[Probe, Observer] = {probe: make(probe) for probe in dict.fromkeys(probes)}
        self._by_value: dict[str, list[Observer]] = {}
        self._index()
        self.batches = 0
        self.seen: dict[str, int] = {}

    def _index(self) -> None:
        self._by_value = {}
        for probe, observer in self._observers.items():
            self._by_value.setdefault(probe.value, []).append(observer)

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the values to observe."""
        return tuple(self._by_value)

    @property
    def observers(self) -> Mapping[Probe, Observer]:
        """Observers by probe."""
        return self._observers

    def update(self, value: str, x: Array) -> None:
        """Take one array of one value; the sink of ``Session.observe``.

        Raises:
            DataError: If it is not finite.
        """
        if not _finite(x):
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

    def rescaled(self, factors: Mapping[str, Array]) -> tuple[Statistics, tuple[Probe, ...]]:
        """Return what would have been seen had some values been divided channel by channel.

        Args:
            factors: Value name -> float32 > 0, shape (channels,).

        Returns:
            The statistics, and the probes that cannot be derived and must be observed again. Features, channel
            ranges, and whole-tensor ``minmax`` ranges where channel ranges were seen, are derived exactly.
        """
        derived = copy(self)
        derived._observers = dict(self._observers)
        missing = []
        for probe, observer in self._observers.items():
            if probe.value not in factors:
                continue
            found = observer.rescaled(factors[probe.value])
            if found is None:
                found = self._whole(probe, factors[probe.value])
            if found is None:
                missing.append(probe)
            else:
                derived._observers[probe] = found
        derived._index()
        return derived, tuple(missing)

    def _whole(self, probe: Probe, factors: Array) -> Observer | None:
        for axis in (1, -1) if probe.calibrator == MINMAX and probe.axis is None and probe.rows is None else ():
            channels = self._observers.get(Probe(probe.value, MINMAX, axis))
            if isinstance(channels, MinMax) and (scaled := channels.rescaled(factors)) is not None:
                return scaled.whole()
        return None

    def replaced(self, fresh: Statistics) -> Statistics:
        """Return these statistics with the observers of ``fresh`` in place of their own."""
        joined = copy(self)
        joined._observers = {**self._observers, **fresh._observers}
        joined._index()
        return joined

    def observer(self, probe: Probe) -> Observer:
        """Return one observer.

        Raises:
            DataError: If the value was not observed that way.
        """
        found = self._observers.get(probe)
        if found is None:
            how = f"with {probe.calibrator}" + (f" along axis {probe.axis}" if probe.axis is not None else "")
            raise DataError(f"value {probe.value!r} was not observed {how}{nearest(probe.value, {p.value for p in self._observers})}")
        return found

    def range(self, value: str, calibrator: PartChoice, spec: QuantSpec, axis: int | None = None) -> tuple[Array, Array]:
        """Return the (low, high) of a value, float32, shape () or (channels,).

        Raises:
            DataError: If the value was not observed that way.
        """
        observer = self.observer(Probe(value, calibrator, axis))
        if not isinstance(observer, Calibrator):
            raise DataError(f"value {value!r} was observed by {calibrator}, which gives no range; name a calibrator")
        return observer.range(spec)


def _finite(x: Array) -> bool:
    if "float" not in str(x.dtype):
        return True
    xp = array_namespace(x)
    # A finite sum proves finite terms and needs no temporary; only an overflowing one is looked at term by term.
    return bool(xp.isfinite(xp.sum(x))) or bool(xp.all(xp.isfinite(x)))
