"""To which op each step of an executed graph belongs, and what is typical of repeated timings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from octavo.core.values.layers import REST


class Step(NamedTuple):
    """A node of a graph as it runs.

    Attributes:
        owner: Op that it is known to belong to; :data:`REST` for a node of the model that is part
            of no op; None for one that the model does not have: a quantization, a cast.
        reads: Names of the values that it reads.
        writes: Names of the values that it writes.
        trails: Without an owner, it belongs to what writes its input (it turns codes back into
            floats), and else to what reads its output.
    """

    owner: str | None
    reads: Sequence[str]
    writes: Sequence[str]
    trails: bool = False


def owners_of(steps: Sequence[Step]) -> list[str]:
    """Return the op that each step belongs to; :data:`REST` where that is none.

    A step that the model does not have belongs to the op that it serves: the nearest one that reads
    its result, or that writes its input.

    Args:
        steps: In execution order.
    """
    found = [step.owner for step in steps]
    readers: dict[str, list[int]] = {}
    writers: dict[str, int] = {}
    for i, step in enumerate(steps):
        for value in step.reads:
            readers.setdefault(value, []).append(i)
        writers.update(dict.fromkeys(step.writes, i))

    def by_readers(i: int) -> str | None:
        near = [j for value in steps[i].writes for j in readers.get(value, ())]
        return _first_op(found[j] for j in near)

    def by_writers(i: int) -> str | None:
        near = [writers[value] for value in steps[i].reads if value in writers]
        return _first_op(found[j] for j in near)

    backwards = range(len(steps) - 1, -1, -1)
    for i in backwards:
        if found[i] is None and not steps[i].trails:
            found[i] = by_readers(i)
    for i in range(len(steps)):
        if found[i] is None:
            found[i] = by_writers(i)
    # What trails and is written by no op: a weight that is turned back into floats.
    for i in backwards:
        if found[i] is None:
            found[i] = by_readers(i)
    return [owner or REST for owner in found]


def _first_op(owners: Iterable[str | None]) -> str | None:
    """Return the first owner that is an op."""
    return next((owner for owner in owners if owner and owner != REST), None)


def typical(durations: Sequence[float]) -> float:
    """Return the mean of the middle half of some durations.

    It is as deaf to outliers as a median, and finer where a clock counts whole microseconds.
    """
    ordered = sorted(durations)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return math.fsum(middle) / len(middle)


def by_op(
    calls: Sequence[Mapping[str, float]], whole: Sequence[float]
) -> dict[str, float]:
    """Return what is typical of each op's time in a call, and of the rest of a call.

    Args:
        calls: For each call, op -> its time.
        whole: The time of each whole call.
    """
    names: dict[str, None] = {}
    for call in calls:
        names.update(dict.fromkeys(call))
    names.pop(REST, None)
    found = {op: typical([call.get(op, 0.0) for call in calls]) for op in names}
    found[REST] = max(0.0, typical(whole) - sum(found.values()))
    return found
