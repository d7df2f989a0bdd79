"""Threads for array code of our own."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def threads() -> int:
    """Return how many threads array code of our own may use.

    OMP_NUM_THREADS, or the processors of this process; at most 8.
    """
    try:
        wanted = int(os.environ.get("OMP_NUM_THREADS", "0"))
    except ValueError:
        wanted = 0
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return min(wanted or available, 8)


def spread_over_threads(
    work: Callable[[int, int], None], rows: int, step: int, count: int
) -> None:
    """Call ``work(first, last)`` for shares of some rows, each on a thread of its own.

    Args:
        work: Takes the first row of a share, and the one after its last.
        rows: How many there are.
        step: A share is a multiple of so many rows.
        count: Threads.
    """
    blocks = -(-rows // step)
    count = min(count, blocks)
    if count <= 1:
        work(0, rows)
        return
    share = -(-blocks // count) * step
    with ThreadPoolExecutor(count) as pool:
        pending = []
        for start in range(0, rows, share):
            end = min(start + share, rows)
            pending.append(pool.submit(work, start, end))
        for future in pending:
            future.result()
