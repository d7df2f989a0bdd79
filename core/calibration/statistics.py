"""What one calibration pass observed. Streamed, mergeable, bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Protocol, Self

from octavo.core.calibration.calibrators.minmax import MinMax
from octavo.core.contract.calibrator import Calibrator, Observer, Probe
from octavo.core.errors import DataError, nearest
from octavo.core.numerics.affine import Array
from octavo.core.numerics.arrays import is_finite
from octavo.core.numerics.channels import ChannelMap
from octavo.core.values.scheme import MINMAX, PartChoice, QuantSpec

from .features import FeatureAbsMax, FeatureSum, Gram


class LateObservers(Protocol):
    """Observers of which some are there at a time: ``octavo.core.quantizing.gram_pages.Pages``."""

    def __contains__(self, probe: Probe) -> bool:
        """Whether one of them is for this probe."""

    def observer(self, probe: Probe) -> Observer | None:
        """Return the one for a probe; None if there is none."""

    def changed(self, changes: Mapping[str, ChannelMap]) -> Self:
        """Return those of a model whose values are changed."""


class Statistics:
    """Observers of activation values, fed by ``Session.observe`` through :meth:`update`.

    Args:
        probes: What to observe.
        make: Builds the observer of a probe.
        pages: Further observers, which are there a few at a time.
    """

    def __init__(
        self,
        probes: Iterable[Probe],
        make: Callable[[Probe], Observer],
        pages: LateObservers | None = None,
    ) -> None:
        self._observers: dict[Probe, Observer] = {
            probe: make(probe) for probe in dict.fromkeys(probes)
        }
        self._pages = pages
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

    def __contains__(self, probe: Probe) -> bool:
        if probe in self._observers:
            return True
        return self._pages is not None and probe in self._pages

    @property
    def observers(self) -> Mapping[Probe, Observer]:
        """Observers by probe, without those on pages."""
        return self._observers

    def update(self, value: str, x: Array) -> None:
        """Take one array of one value; the sink of ``Session.observe``.

        Raises:
            DataError: If it is not finite.
        """
        batches = self.seen.get(value, 0)
        if not is_finite(x):
            raise DataError(
                f"value {value!r} is not finite in calibration batch {batches}: "
                "the float model itself overflows there; "
                "check the batch, or keep the op that writes it out of the calibration data's range"
            )
        if 0 in x.shape:
            return  # nothing was computed: an empty sequence, a loop without a step
        self.seen[value] = batches + 1
        for observer in self._by_value.get(value, ()):
            observer.update(x)

    def merge(self, other: Statistics) -> None:
        """Take in another worker's statistics over the same probes."""
        for probe, observer in other._observers.items():
            self._observers[probe].merge(observer)
        self.batches += other.batches
        for value, count in other.seen.items():
            self.seen[value] = self.seen.get(value, 0) + count

    def rescaled(
        self, changes: Mapping[str, ChannelMap]
    ) -> tuple[Statistics, tuple[Probe, ...]]:
        """Return what would have been seen had the channels of some values been changed.

        Args:
            changes: Value name -> how.

        Returns:
            The statistics, and the probes that cannot be derived; they are gone from the
            statistics. Derived exactly are means, channel ranges without a rotation, whole-tensor
            ``minmax`` ranges where channel ranges were seen, and Gram matrices, for a shift where
            the means were seen.
        """
        derived = copy(self)
        derived._observers = {}
        missing = []
        for probe, observer in self._observers.items():
            change = changes.get(probe.value)
            found = (
                observer if change is None else self._derived(probe, observer, change)
            )
            if found is None:
                missing.append(probe)
            else:
                derived._observers[probe] = found
        derived._index()
        if self._pages is not None:
            derived._pages = self._pages.changed(changes)
        return derived, tuple(missing)

    def _derived(
        self, probe: Probe, observer: Observer, change: ChannelMap
    ) -> Observer | None:
        alone = observer.rescaled(change)
        return self._from_others(probe, observer, change) if alone is None else alone

    def _from_others(
        self, probe: Probe, observer: Observer, change: ChannelMap
    ) -> Observer | None:
        """Derive what an observer alone cannot tell, from another that watched the same value."""
        if isinstance(observer, Gram) and change.shift is not None:
            return self._shifted_gram(probe, observer, change, change.shift)
        if probe.rows is not None:
            features_are_channels = not probe.rows.kernel
            if not features_are_channels or not isinstance(observer, FeatureAbsMax):
                return None
            ranges = self._channels(probe.value, (-1,), change)
            return observer.within(ranges.low, ranges.high) if ranges else None
        if probe.calibrator == MINMAX and probe.axis is None:
            ranges = self._channels(probe.value, (1, -1), change)
            return ranges.whole() if ranges else None
        return None

    def _shifted_gram(
        self, probe: Probe, gram: Gram, change: ChannelMap, shift: Array
    ) -> Observer | None:
        sums = self._observers.get(
            replace(probe, calibrator=PartChoice(kind="channel_mean"))
        )
        moved = gram.centred(sums, shift) if isinstance(sums, FeatureSum) else None
        return None if moved is None else moved.rescaled(replace(change, shift=None))

    def _channels(
        self, value: str, axes: tuple[int, ...], change: ChannelMap
    ) -> MinMax | None:
        """Return the channel ranges along the first of some axes that has them, changed."""
        for axis in axes:
            channels = self._observers.get(Probe(value, MINMAX, axis))
            scaled = channels.rescaled(change) if isinstance(channels, MinMax) else None
            if scaled is not None:
                return scaled
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
        if found is None and self._pages is not None:
            found = self._pages.observer(probe)
        if found is None:
            along = f" along axis {probe.axis}" if probe.axis is not None else ""
            meant = nearest(probe.value, {p.value for p in self._observers})
            raise DataError(
                f"value {probe.value!r} was not observed with {probe.calibrator}{along}{meant}"
            )
        return found

    def range(
        self,
        value: str,
        calibrator: PartChoice,
        spec: QuantSpec,
        axis: int | None = None,
        readers: Callable[[], Sequence[Array]] = tuple,
    ) -> tuple[Array, Array]:
        """Return the (low, high) of a value, float32, shape () or (channels,).

        Args:
            value: Its name.
            calibrator: Who watched it.
            spec: How it will be quantized.
            axis: Its channel axis, for one range a channel.
            readers: Gives the weights of the linear ops that read it, for calibrators that ask.

        Raises:
            DataError: If the value was not observed that way.
        """
        observer = self.observer(Probe(value, calibrator, axis))
        if not isinstance(observer, Calibrator):
            raise DataError(
                f"value {value!r} was observed by {calibrator}, which gives no range; name a "
                "calibrator"
            )
        return observer.range_for(spec, readers)
