"""From what a loader yields to what a model's call takes.

Labels are dropped, and what cannot be guessed is refused.
"""

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

from .forms import LABELS, kind_of, named_values
from .telling_apart import agree, is_mask

REMEDY = "say what the model takes: calibration=octavo.Batches(loader, inputs=lambda batch: ...)"
"""The way out of every batch that cannot be read."""

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
            values = named_values(raw)
            taken = {name: values[name] for name in values if self._takes_name(name)}
            return Call(**taken)
        return Call(raw)

    def _takes_name(self, name: str) -> bool:
        return self.takes.names(name) and name not in self.without

    def __call__(self, raw: Any, index: int) -> Batch:
        """Return a batch in the form that sessions take.

        Raises:
            DataError: If the model cannot be called with it; the message names the batch.
        """
        if kind_of(raw) != self.kind:
            return choose_reading(raw, self.takes, None, index)(raw, index)
        call = self.call(raw)
        problem = self.takes.problem(call)
        if problem:
            raise DataError(f"calibration batch {index}: {problem}")
        return plainest(call.args, call.kwargs)


def choose_reading(
    raw: Any, takes: Takes, attempt: Attempt | None, index: int = 0
) -> Reading:
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
    groups = _fitting(raw, takes)
    if not groups:
        raise DataError(f"calibration batch {index} {_misfit(raw, takes)}; {REMEDY}")
    is_clear = len(groups) == 1 and len(groups[0]) == 1
    if attempt is None or is_clear:
        return groups[0][0]
    errors: list[str] = []
    for group in groups:
        ran = _that_run(group, raw, attempt, index, errors)
        if ran:
            return _one_of(ran, raw, takes, index)
    call = groups[0][0](raw, index)
    raise DataError(
        f"calibration batch {index} ({shown(call, takes.positional)}) does not run on the model, "
        f"which takes {takes}: {errors[0]}; {REMEDY}"
    )


def _fitting(raw: Any, takes: Takes) -> list[list[Reading]]:
    """Return the readings that fit the call's signature, in their groups."""
    groups = []
    for group in _readings(raw, takes):
        fitting = []
        for reading in group:
            problem = takes.problem(reading.call(raw))
            if not problem:
                fitting.append(reading)
        if fitting:
            groups.append(fitting)
    return groups


Ran = tuple["Reading", tuple[np.ndarray, ...]]
"""A reading that the model runs with, and what it gives then."""


def _that_run(
    group: Sequence[Reading], raw: Any, attempt: Attempt, index: int, errors: list[str]
) -> list[Ran]:
    """Return the readings of a group that the model runs with; ``errors`` takes why others fail."""
    ran: list[Ran] = []
    for reading in group:
        try:
            batch = reading(raw, index)
            outputs = attempt(batch)
            ran.append((reading, outputs))
        except Exception as error:
            text = str(error)
            errors.append(text.splitlines()[0] if text else type(error).__name__)
    return ran


def _one_of(ran: Sequence[Ran], raw: Any, takes: Takes, index: int) -> Reading:
    """Return which of several readings that run is right.

    Raises:
        DataError: If they give different outputs, and none of them is plain.
    """
    longest, _ = ran[0]
    shortest, _ = ran[-1]
    if len(ran) == 1 or _adds_masks(longest, shortest, raw):
        return longest
    readings, outputs = zip(*ran, strict=True)
    if not agree(outputs):
        _refuse(raw, takes, readings, index)
    # Numbers that are no mask, and made no difference as one, are labels.
    if _called_mask(longest, shortest, raw):
        return shortest
    return longest


def _readings(
    raw: Any, takes: Takes, first: int = 0, left: str = ""
) -> Iterator[list[Reading]]:
    """Yield groups of readings, likelier ones first.

    Those of one group are told apart by running them.

    Args:
        raw: One batch as the loader yields it.
        takes: What the model's call takes.
        first: How often the first item was taken already.
        left: What that left out, for the ledger.
    """
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
    names = [name for name in named_values(raw) if takes.names(name)]
    if names:
        yield from _by_name(raw, names, takes, reading)
    is_sequence = isinstance(raw, (tuple, list))
    if is_sequence and raw:
        yield from _in_order(tuple(raw), takes, reading)
        yield from _of_first_item(raw, takes, first, left)
    needs_one_at_most = len(takes.required) <= 1
    is_of_one = is_sequence and len(raw) < 2
    if not needs_one_at_most or is_of_one:
        return
    if names and isinstance(raw, Mapping):
        by_name = reading("names").call(raw)
        if not takes.problem(by_name):
            return
    yield [reading("whole")]


def _by_name(
    raw: Any, names: Sequence[str], takes: Takes, reading: Callable[..., Reading]
) -> Iterator[list[Reading]]:
    extra = [name for name in named_values(raw) if name not in names]
    note = ""
    if extra:
        listed = ", ".join(extra)
        note = (
            f"calibration keys that are not inputs of the model were left out: {listed}"
        )
    yield [reading("names", note)]
    unstated = [name for name in names if name not in takes.keywords]
    labels = LABELS.intersection(unstated)
    if labels and len(names) > len(labels):
        listed = ", ".join(sorted(labels))
        note = (
            f"calibration keys that the model does not run with were left out: {listed}"
        )
        yield [reading("names", note, without=labels)]


def _of_first_item(
    raw: Any, takes: Takes, first: int, left: str
) -> Iterator[list[Reading]]:
    """Yield the readings of what a loader of (inputs, labels) has first."""
    if not (is_container(raw[0]) or isinstance(raw[0], Call)):
        return
    if len(raw) > 1:
        left = (
            "calibration batches hold what the model takes in their first item: "
            "the rest (labels?) was left out"
        )
    kind = "" if first else kind_of(raw)
    for group in _readings(raw[0], takes, first + 1, left):
        yield [dataclasses.replace(reading, kind=kind) for reading in group]


def _in_order(
    items: tuple[Any, ...], takes: Takes, reading: Callable[..., Reading]
) -> Iterator[list[Reading]]:
    most = len(items)
    if not takes.any_positional:
        most = min(most, len(takes.positional))
    required = [name for name in takes.positional if name in takes.required]
    least = min(most, max(1, len(required)))
    group = []
    for count in range(most, least - 1, -1):
        note = ""
        if count < len(items):
            note = (
                f"calibration batches have {len(items)} items and the model takes {count}: "
                "the rest (labels?) was left out"
            )
        group.append(reading("items", note, count=count))
    if takes.any_positional:
        # Whatever number of values runs is what it takes; fewer are tried only where more do not
        # run.
        for one in group:
            yield [one]
    else:
        yield group


def _misfit(raw: Any, takes: Takes) -> str:
    """Return why no reading of a batch fits."""
    if isinstance(raw, Mapping):
        keys = [str(key) for key in raw.keys()]  # noqa: SIM118
        if not any(takes.names(key) for key in keys):
            return f"has keys {keys}, and the model takes {takes}"
    likeliest = next(_readings(raw, takes), [])
    problem = "it holds nothing"
    if likeliest:
        problem = takes.problem(likeliest[0].call(raw))
    return f"cannot be read: {problem}"


def _adds_masks(longest: Reading, shortest: Reading, raw: Any) -> bool:
    """True if what the longest reading takes beyond the shortest are masks.

    These are arguments that are called so and hold nothing else.
    """
    values = longest.call(raw).args
    names = longest.takes.positional
    data = _first_array(values[0])
    if data is None:
        return False
    taken_by_both = len(shortest.call(raw).args)
    for i in range(taken_by_both, len(values)):
        is_called_so = i < len(names) and "mask" in names[i]
        if not is_called_so or not is_mask(values[i], data):
            return False
    return True


def _first_array(value: Any) -> Any:
    for _, leaf in leaves(value):
        if is_array(leaf):
            return leaf
    return None


def _called_mask(longest: Reading, shortest: Reading, raw: Any) -> bool:
    """True if the longest reading gives as a mask what it takes beyond the shortest."""
    start = len(shortest.call(raw).args)
    stop = len(longest.call(raw).args)
    return any("mask" in name for name in longest.takes.positional[start:stop])


def _refuse(raw: Any, takes: Takes, ran: Sequence[Reading], index: int) -> None:
    taken = [len(reading.call(raw).args) for reading in reversed(ran)]
    counts = " and ".join(map(str, taken))
    beyond = taken[0]
    name = "the next argument"
    if beyond < len(takes.positional):
        name = takes.positional[beyond]
    raise DataError(
        f"calibration batch {index} has {len(raw)} items, and the model runs with {counts} of "
        f"them, with other outputs: item {beyond} may be {name!r} or labels, which cannot be "
        f"guessed; give batches by name, or {REMEDY}"
    )
