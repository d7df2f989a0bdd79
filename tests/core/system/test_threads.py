"""How many threads array code takes, and how rows are shared among them."""

from __future__ import annotations

import os

import pytest

from octavo.core.system.threads import spread_over_threads, threads


def test_threads_are_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5 - pid)))
    for asked, expected in (("3", 3), ("100", 8), ("0", 5), ("many", 5), ("1", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert threads() == expected
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads() == 5
    monkeypatch.delattr(os, "sched_getaffinity")
    for there, expected in ((6, 6), (64, 8), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda there=there: there)
        assert threads() == expected


@pytest.mark.parametrize(
    ("rows", "step", "count"), [(10, 3, 2), (10, 3, 9), (7, 7, 4), (8, 2, 1), (9, 2, 3)]
)
def test_every_row_is_worked_on_once(rows: int, step: int, count: int) -> None:
    met: list[tuple[int, int]] = []
    spread_over_threads(
        lambda first, last: met.append((first, last)), rows, step, count
    )
    met.sort()
    assert [row for first, last in met for row in range(first, last)] == list(
        range(rows)
    )
    assert len(met) == min(count, -(-rows // step))
    # Shares are whole blocks but for the last.
    assert all((last - first) % step == 0 for first, last in met[:-1])


def test_what_fails_on_a_thread_is_raised() -> None:
    def fail(first: int, last: int) -> None:
        raise ValueError(first)

    with pytest.raises(ValueError, match="0"):
        spread_over_threads(fail, 8, 1, 2)
