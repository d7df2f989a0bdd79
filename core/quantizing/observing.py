"""What calibration sees of the float model: one pass for all recipes, more where needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from octavo.core.calibration.features import FEATURE_OBSERVERS
from octavo.core.calibration.statistics import Statistics
from octavo.core.calibration.visits import Met, Numbered
from octavo.core.contract.adapter import Batch, Opened, Sink
from octavo.core.contract.calibrator import Observer, Probe
from octavo.core.errors import DataError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import Changes
from octavo.core.values.scheme import PartChoice

from .gram_pages import Page, Pages, paged

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


class Observation:
    """Runs the float model over calibration batches and keeps what was seen.

    Args:
        opened: The session.
        host: Builds calibrators by name.
        gram_bytes: How much the Gram matrices may take at a time, see :mod:`.gram_pages`.

    Attributes:
        statistics: What the calibration pass saw; None before it.
        met: How many batches came by each value; None before the pass.
        passes: How often the batches were read.
        batches: The calibration batches, where they can be read again.
        gram_bytes: What may be kept between two passes.
    """

    def __init__(self, opened: Opened, host: PluginHost, gram_bytes: int) -> None:
        self.statistics: Statistics | None = None
        self.met: Met | None = None
        self.passes = 0
        self.batches: Iterable[Batch] | None = None
        self._opened = opened
        self._host = host
        self.gram_bytes = gram_bytes
        self._can_read_again = False
        self._watch: Callable[[Iterable[str], Sink], int] | None = None

    def calibrate(
        self, batches: Iterable[Batch], probes: tuple[Probe, ...]
    ) -> Statistics:
        """Run the calibration pass.

        Args:
            batches: Calibration batches.
            probes: What to observe.

        Raises:
            DataError: If there is no batch, or a value is not finite.
        """
        # An iterator is its own iterator: it is gone after one pass.
        self._can_read_again = iter(batches) is not batches
        later: tuple[Page, ...] = ()
        if self._can_read_again:
            self.batches = batches
            probes, later = paged(probes, self._opened.view.ops, self.gram_bytes)
        numbered = Numbered(batches)
        self._watch = self._opened.session.watcher(
            numbered, self.gram_bytes if later else 0
        )
        self.statistics = Statistics(
            probes, self.make, self._pages(later) if later else None
        )
        self.met = Met(numbered, self.statistics.update)
        self._run(self.statistics, self.met)
        return self.statistics

    def batches_for(self, op: str, who: str, instead: str) -> Iterable[Batch]:
        """Return the calibration batches for who reads them once more.

        Args:
            op: The op for whose sake.
            who: What reads them, for the message.
            instead: What needs no second reading.

        Raises:
            DataError: If there are none, or they can be read only once.
        """
        if self.batches is None:
            raise DataError(
                f"op {op!r}: {who} needs calibration data that can be read again: pass a list or a "
                f"factory, or {instead}"
            )
        return self.batches

    def _pages(self, later: tuple[Page, ...]) -> Pages:
        return Pages(later, lambda page, changes: self.again(page, changes).observers)

    def make(self, probe: Probe) -> Observer:
        """Build the observer of a probe."""
        if probe.rows is not None:
            return FEATURE_OBSERVERS[probe.calibrator.kind](probe.rows)
        settings = self._host.read("calibrators", probe.calibrator.table())
        part = self._host.part("calibrators", probe.calibrator.kind)
        built: Observer = part.build(settings, axis=probe.axis)
        return built

    def nothing(self) -> Statistics:
        """Return the statistics of a model that was not calibrated."""
        return Statistics((), self.make)

    def after(
        self, choice: PartChoice, probes: tuple[Probe, ...], changes: Changes
    ) -> Statistics:
        """Observe what a transform's statistics cannot be derived for.

        Raises:
            DataError: If the batches can be read only once.
        """
        if not self._can_read_again:
            raise DataError(
                f"after {choice} value {probes[0].value!r} must be observed again for "
                f"{probes[0].calibrator}, and the calibration data can be read only once: pass a "
                "list or a factory, or calibrate with minmax, whose ranges are derived"
            )
        return self.again(probes, changes)

    def again(self, probes: tuple[Probe, ...], changes: Changes) -> Statistics:
        """Observe values of the original model once more, changed as the rescaled one has them."""
        fresh = Statistics(probes, self.make)

        def sink(value: str, x: Array) -> None:
            maps, axis = changes.get(value, ((), -1))
            for change in maps:
                x = change.apply(x, axis)
            fresh.update(value, x)

        self._run(fresh, sink)
        return fresh

    def _run(self, statistics: Statistics, sink: Sink) -> None:
        assert self._watch is not None
        self.passes += 1
        tap = _Tap(sink)
        statistics.batches = self._watch(statistics.values, tap)
        tap.close()
        if not statistics.batches:
            raise DataError(
                "calibration data is empty: give at least one batch "
                "(a one-shot generator may be exhausted; pass a factory instead)"
            )


class _Tap:
    """A sink that lets go of what it feeds.

    An adapter's runner may live on in a cycle of references, and what was seen with it.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink: Sink | None = sink

    def __call__(self, value: str, x: Array) -> None:
        if self._sink is not None:
            self._sink(value, x)

    def close(self) -> None:
        self._sink = None
