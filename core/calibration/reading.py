"""From what a loader yields to what a model's call takes: labels are dropped, and what cannot be
guessed is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from octavo.core.errors import DataError
from octavo.core.values.calls import Batch, Call, plainest, shown
from octavo.core.values.graph import InputInfo
from octavo.core.values.takes import Takes
from octavo.core.values.trees import is_array, is_container, leaves

REMEDY = "say what the model takes: calibration=octavo.Batches(loader, inputs=lambda batch: ...)"
"""The way out of every batch that cannot be read."""

LABELS = frozenset({"label", "labels", "target", "targets", "y"})
"""Names under which loaders yield what a model is to predict."""

Attempt = Callable[[Batch], tuple[np.ndarray, ...]]
"""Runs a batch on the float model; whatever it raises says that the batch was read wrongly."""


def takes_of(inputs: Sequence[InputInfo]) -> Takes:
    """Return what a graph with these inputs takes; anything where they are not known."""
    names = tuple(i.name for i in inputs)
    unknown = not names
    return Takes(names, names, any_positional=unknown, any_keyword=unknown, trees=False)


Form = Literal["call", "value", "items", "names", "whole"]


@dataclass(frozen=True)
class Reading:
    """One way to read what a loader yields.

    Attributes:
        takes: What the model's call takes.
        form: ``call``: it is a :class:`Call` already. ``value``: one array. ``items``: values in
            order. ``names``: values by name. ``whole``: the container itself is the one argument.
        first: How often the first item is taken before: loaders yield (inputs, labels).
        count: How many items are taken.
        without: Names that are left out though they could be given.
        kind: What the batches are that it was made for.
        note: What is left out, for the ledger.
    """

    takes: Takes
    form: Form
    first: int = 0
    count: int | None = None
    without: frozenset[str] = frozenset()
    kind: str = ""
    note: str = ""

    def call(self, raw: Any) -> Call:
        """Return a batch as the arguments of a call."""
        for _ in range(self.first):
            raw = next(iter(raw))
        if self.form == "call":
            return raw  # type: ignore[no-any-return]
        if self.form == "items":
            return Call(*tuple(raw)[: self.count])
        if self.form == "names":
            return Call(
                **{
                    k: v
                    for k, v in _table(raw).items()
                    if self.takes.names(k) and k not in self.without
                }
            )
        return Call(raw)

    def __call__(self, raw: Any, index: int) -> Batch:
        """Return a batch in the form that sessions take.

        Raises:
            DataError: If the model cannot be called with it; the message names the batch.
        """
        if kind_of(raw) != self.kind:
            return choose(raw, self.takes, None, index)(raw, index)
        call = self.call(raw)
        problem = self.takes.problem(call)
        if problem:
            raise DataError(f"calibration batch {index}: {problem}")
        return plainest(call.args, call.kwargs)


def choose(raw: Any, takes: Takes, attempt: Attempt | None, index: int = 0) -> Reading:
    """Choose how a loader's batches are read, from one of them.

    What the call's signature leaves open is tried on the model. Required arguments count first: a
    further item is an optional argument or labels, and which one is taken as known only where the
    model runs with it alone, where it makes no difference, or where it can be nothing but a mask.

    Args:
        raw: One batch as the loader yields it.
        takes: What the model's call takes.
        attempt: Runs a batch on the model; None takes the first reading that fits the signature.
        index: Number of the batch, for messages.

    Raises:
        DataError: If no reading fits, or several do; the message holds the remedy.
    """
    groups = [
        [r for r in group if not takes.problem(r.call(raw))] for group in _readings(raw, takes)
    ]
    groups = [group for group in groups if group]
    if not groups:
        raise DataError(f"calibration batch {index} {_misfit(raw, takes)}; {REMEDY}")
    if attempt is None or (len(groups) == 1 and len(groups[0]) == 1):
        return groups[0][0]
    first_error = ""
    for group in groups:
        ran: list[tuple[Reading, tuple[np.ndarray, ...]]] = []
        for reading in group:
            try:
                ran.append((reading, attempt(reading(raw, index))))
            except Exception as error:
                first_error = (
                    first_error or str(error).splitlines()[0]
                    if str(error)
                    else type(error).__name__
                )
        if len(ran) > 1 and not _masks(ran, raw):
            if not _agree([outputs for _, outputs in ran]):
                _refuse(raw, takes, [reading for reading, _ in ran], index)
            if _called_mask(ran, raw):
                return ran[-1][0]  # numbers that are no mask, and made no difference as one
        if ran:
            return ran[0][0]
    call = groups[0][0](raw, index)
    raise DataError(
        f"calibration batch {index} ({shown(call, takes.positional)}) does not run on the model, "
        f"which takes {takes}: {first_error}; {REMEDY}"
    )


def _readings(raw: Any, takes: Takes, first: int = 0, left: str = "") -> Iterator[list[Reading]]:
    """Yield groups of readings, likelier ones first; those of one group are told apart by running
    them."""
    kind = kind_of(raw) if not first else ""

    def reading(form: Form, note: str = "", **more: Any) -> Reading:
        said = "; ".join(filter(None, (left, note)))
        return Reading(takes, form, first, kind=kind, note=said, **more)

    if isinstance(raw, Call):
        yield [reading("call")]
        return
    if not is_container(raw):
        yield [reading("value")]
        return
    table = _table(raw)
    kept = [name for name in table if takes.names(name)]
    if kept:
        extra = [name for name in table if name not in kept]
        note = (
            f"calibration keys that are not inputs of the model were left out: {', '.join(extra)}"
            if extra
            else ""
        )
        yield [reading("names", note)]
        labels = LABELS.intersection(name for name in kept if name not in takes.keywords)
        if labels and len(kept) > len(labels):
            note = (
                "calibration keys that the model does not run with were left out: "
                f"{', '.join(sorted(labels))}"
            )
            yield [reading("names", note, without=labels)]
    if isinstance(raw, (tuple, list)) and raw:
        yield from _in_order(tuple(raw), takes, reading)
        if is_container(raw[0]) or isinstance(raw[0], Call):
            rest = (
                "calibration batches hold what the model takes in their first item: the rest "
                "(labels?) was left out"
            )
            for group in _readings(raw[0], takes, first + 1, rest if len(raw) > 1 else left):
                yield [
                    dataclasses.replace(r, kind=kind_of(raw) if not first else "") for r in group
                ]
    by_name = (
        bool(kept) and isinstance(raw, Mapping) and not takes.problem(reading("names").call(raw))
    )
    of_one = isinstance(raw, (tuple, list)) and len(raw) < 2
    if len(takes.required) <= 1 and not by_name and not of_one:
        yield [reading("whole")]


def _in_order(
    items: tuple[Any, ...], takes: Takes, reading: Callable[..., Reading]
) -> Iterator[list[Reading]]:
    most = len(items) if takes.any_positional else min(len(items), len(takes.positional))
    least = max(1, sum(name in takes.required for name in takes.positional))
    group = []
    for count in range(most, min(least, most) - 1, -1):
        note = (
            f"calibration batches have {len(items)} items and the model takes {count}: the "
            "rest (labels?) was left out"
        )
        group.append(reading("items", note if count < len(items) else "", count=count))
    if takes.any_positional:
        # Whatever number of values runs is what it takes; fewer are tried only where more do not
        # run.
        yield from ([one] for one in group)
    else:
        yield group


def kind_of(raw: Any) -> str:
    """Return what a batch is: batches of another kind than the first are read on their own."""
    if isinstance(raw, Call):
        return "call"
    if isinstance(raw, Mapping):
        return "names"
    if isinstance(raw, (tuple, list)):
        return f"{len(raw)} items"
    return "record" if is_container(raw) else "value"


def _table(raw: Any) -> dict[str, Any]:
    """Return the values of a mapping, a named tuple or a dataclass by name; empty where there are
    no names."""
    if isinstance(raw, Mapping):
        keys = list(raw.keys())
        return {k: raw[k] for k in keys} if all(isinstance(k, str) for k in keys) else {}
    names = getattr(raw, "_fields", None) if isinstance(raw, tuple) else None
    if names is not None:
        return dict(zip(names, raw, strict=True))
    if dataclasses.is_dataclass(raw) and not isinstance(raw, type):
        return {f.name: getattr(raw, f.name) for f in dataclasses.fields(raw)}
    return {}


def _misfit(raw: Any, takes: Takes) -> str:
    """Return why no reading of a batch fits."""
    if isinstance(raw, Mapping) and not any(takes.names(str(k)) for k in raw.keys()):  # noqa: SIM118
        return f"has keys {[str(k) for k in raw.keys()]}, and the model takes {takes}"  # noqa: SIM118
    groups = list(_readings(raw, takes))
    problem = takes.problem(groups[0][0].call(raw)) if groups and groups[0] else "it holds nothing"
    return f"cannot be read: {problem}"


def _agree(found: Sequence[tuple[np.ndarray, ...]]) -> bool:
    """True if what the readings give is the same: what they differ in has no influence."""
    some, *others = found
    return all(
        len(some) == len(other)
        and all(
            a.shape == b.shape and np.allclose(a, b, equal_nan=True)
            for a, b in zip(some, other, strict=True)
        )
        for other in others
    )


def _masks(ran: Sequence[tuple[Reading, Any]], raw: Any) -> bool:
    """True if what the longest reading takes beyond the shortest are masks: arguments that are
    called so and hold nothing else."""
    longest, shortest = ran[0][0], ran[-1][0]
    values = longest.call(raw).args
    names = longest.takes.positional
    data = next((leaf for _, leaf in leaves(values[0]) if is_array(leaf)), None)
    beyond = range(len(shortest.call(raw).args), len(values))
    return data is not None and all(
        i < len(names) and "mask" in names[i] and _is_mask(values[i], data) for i in beyond
    )


def _called_mask(ran: Sequence[tuple[Reading, Any]], raw: Any) -> bool:
    """True if what the longest reading takes beyond the shortest would be given as a mask."""
    longest, shortest = ran[0][0], ran[-1][0]
    beyond = longest.takes.positional[len(shortest.call(raw).args) : len(longest.call(raw).args)]
    return any("mask" in name for name in beyond)


def _is_mask(value: Any, data: Any) -> bool:
    if not is_array(value):
        return False
    if "bool" in str(value.dtype):
        return True
    covers = len(value.shape) >= 2 and tuple(value.shape) == tuple(data.shape)[: len(value.shape)]
    return covers and bool(((value == 0) | (value == 1)).all())


def _refuse(raw: Any, takes: Takes, ran: Sequence[Reading], index: int) -> None:
    counts = " and ".join(str(len(r.call(raw).args)) for r in reversed(ran))
    beyond = len(ran[-1].call(raw).args)
    name = takes.positional[beyond] if beyond < len(takes.positional) else "the next argument"
    raise DataError(
        f"calibration batch {index} has {len(raw)} items, and the model runs with {counts} of "
        "them, with other outputs: "
        f"item {beyond} may be {name!r} or labels, which cannot be guessed; give batches by name, "
        f"or {REMEDY}"
    )


__all__ = ["LABELS", "REMEDY", "Attempt", "Reading", "Takes", "choose", "kind_of"]
