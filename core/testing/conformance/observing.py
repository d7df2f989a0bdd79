"""The promise that an adapter shows the values of the float model, at the price of one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from octavo.core.contract.adapter import Batch, Opened
from octavo.core.numerics.arrays import to_numpy

from .case import AdapterCase, check_close

WATCHER_BYTES = 2**28
"""More than the small models of the kit need."""


class Observing:
    """``Session.observe`` and ``Session.watcher``."""

    def test_observe_reads_the_data_once(
        self, case: AdapterCase, opened: Opened
    ) -> None:
        """One pass, every batch, every value."""
        taken = 0

        def once() -> Iterator[Batch]:
            nonlocal taken
            for batch in case.batches:
                taken += 1
                yield batch

        values = _inputs_of_ops(opened)
        seen: dict[str, int] = {}

        def count_value(value: str, array: Any) -> None:
            seen[value] = seen.get(value, 0) + 1

        count = opened.session.observe(once(), values, count_value)
        assert count == taken == len(case.batches)
        assert set(seen) == set(values)
        assert all(times >= taken for times in seen.values())

    def test_nothing_is_shown_unasked(self, case: AdapterCase, opened: Opened) -> None:
        """Where no value is asked for, none comes, and the batches are counted all the same."""
        nothing: list[str] = []
        count = opened.session.observe(
            case.batches, (), lambda value, array: nothing.append(value)
        )
        assert count == len(case.batches)
        assert not nothing, "values were handed over that nobody asked for"

    def test_values_are_observed_a_few_at_a_time(
        self, case: AdapterCase, opened: Opened
    ) -> None:
        """In execution order, in several calls: what one pass gives, up to rounding.

        A runtime may fuse otherwise what it is asked for less.
        """
        values = _inputs_of_ops(opened)
        whole = _Kept()
        opened.session.observe(case.batches, values, whole.keep)
        watch = opened.session.watcher(case.batches, WATCHER_BYTES)
        quarter, half = len(values) // 4, len(values) // 2
        # The last call asks for the first value again, which lies before all that was kept.
        pages = (values[:quarter], values[quarter:half], values[half:], values[:1])
        for page in filter(None, pages):
            parts = _Kept()
            assert watch(page, parts.keep) == len(case.batches)
            for value in page:
                check_close(parts[value], whole[value], 1e-4, 1e-5, of=value)


class _Kept(dict[str, list[np.ndarray]]):
    """Copies of arrays, by value name."""

    def keep(self, value: str, array: Any) -> None:
        self.setdefault(value, []).append(np.array(to_numpy(array)))


def _inputs_of_ops(opened: Opened) -> list[str]:
    """Return the values that ops within reach read, in execution order."""
    values: dict[str, None] = {}
    for op in opened.view.ops:
        if not op.out_of_reach:
            values.update((value, None) for value in op.inputs)
    return list(values)
