"""Which weights a candidate quantizes, and which stay float: every weight of the model is told of.

What counts is every distinct floating tensor of two or more dimensions that the model's forward
uses. An op claims its weights; what no op claims stands in ``ModelView.unclaimed`` with its reason.
Both together are held against the backend's census, which is taken from the model's tensors and not
from its ops: a layer that the backend does not see then shows as a difference, instead of missing
without a trace.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from octavo.core.errors import AdapterFault, ConfigError

from .graph import HeldWeight, ModelView, Op, Weight
from .ledger import Applied

_BITS: Mapping[str, int] = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}
"""Floating types that a weight may be stored in before it is quantized. A tensor in 8 bits or fewer
is quantized already."""

_TOLD = 3
"""Reasons, and weights of one reason, that a summary names."""


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """What became of one weight.

    Attributes:
        weight: The tensor's name in the model.
        shape: Its shape.
        elements: How many numbers it holds.
        op: The first op that claims it; None where no op does.
        bits: Bits in which a value is stored.
        reason: Why it stays float; empty where it is quantized.
    """

    weight: str
    shape: tuple[int, ...]
    elements: int
    op: str | None
    bits: int
    reason: str = ""

    @property
    def is_float(self) -> bool:
        """True if the weight stays as it was."""
        return bool(self.reason)

    def to_row(self) -> list[Any]:
        """Return the fields in order, JSON-ready."""
        shape = list(self.shape)
        return [self.weight, shape, self.elements, self.op, self.bits, self.reason]


@dataclass(frozen=True)
class Coverage:
    """The weights of a model, one row each; a tensor that several ops use has one row.

    Attributes:
        rows: In the order of the ops, then what no op claims.
    """

    rows: tuple[CoverageRow, ...] = field(default=())

    @property
    def total(self) -> int:
        """Elements of all weights."""
        return sum(row.elements for row in self.rows)

    @property
    def quantized(self) -> int:
        """Elements of the weights that are quantized."""
        return sum(row.elements for row in self.rows if not row.is_float)

    @property
    def kept(self) -> int:
        """Elements of the weights that stay float."""
        return sum(row.elements for row in self.rows if row.is_float)

    @property
    def reasons(self) -> tuple[tuple[str, tuple[CoverageRow, ...]], ...]:
        """Reasons why weights stay float, each with its rows: the largest first."""
        found: dict[str, list[CoverageRow]] = {}
        for row in self.rows:
            if row.is_float:
                found.setdefault(row.reason, []).append(row)
        largest = sorted(found.items(), key=lambda item: -_elements(item[1]))
        return tuple((reason, tuple(rows)) for reason, rows in largest)

    def summary(self) -> str:
        """Return one line: how many weights stay float, and the largest reasons."""
        if not self.total:
            return "the model has no weights of two or more dimensions"
        if not self.kept:
            return f"all {self.total:,} weights are quantized"
        share = f"{100 * self.kept / self.total:.3g} %"
        told = [_told(reason, rows) for reason, rows in self.reasons[:_TOLD]]
        if len(self.reasons) > _TOLD:
            told.append(f"and {len(self.reasons) - _TOLD} more")
        return f"{self.kept:,} of {self.total:,} weights ({share}) stay float: {'; '.join(told)}"

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        counts = f"total={self.total:,}, quantized={self.quantized:,}, kept={self.kept:,}"
        lines = [_told(reason, rows) for reason, rows in self.reasons[:_TOLD]]
        return "\n  ".join([f"Coverage({counts}, {len(self.rows)} rows)", *lines])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "total": self.total,
            "quantized": self.quantized,
            "kept": self.kept,
            "rows": [row.to_row() for row in self.rows],
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Coverage:
        """Read what :meth:`to_json` wrote; an empty mapping of a version that did not count is an
        empty coverage.

        Raises:
            ConfigError: If it is damaged.
        """
        try:
            return cls(tuple(_read_row(*row) for row in raw.get("rows", ())))
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigError(
                f"the record of a result's weights is damaged ({error}); save the result again"
            ) from error


def _read_row(
    weight: str, shape: Sequence[int], elements: int, op: str | None, bits: int, reason: str
) -> CoverageRow:
    return CoverageRow(
        weight=str(weight),
        shape=tuple(int(size) for size in shape),
        elements=int(elements),
        op=None if op is None else str(op),
        bits=int(bits),
        reason=str(reason),
    )


def _elements(rows: Iterable[CoverageRow]) -> int:
    return sum(row.elements for row in rows)


def _told(reason: str, rows: Sequence[CoverageRow]) -> str:
    names = ", ".join(row.weight for row in rows[:_TOLD])
    more = f" and {len(rows) - _TOLD} more" if len(rows) > _TOLD else ""
    return f"{_elements(rows):,} in {names}{more} ({reason})"


def counts(shape: Sequence[int], dtype: str) -> bool:
    """Return whether a tensor is one of the weights that coverage accounts for.

    Args:
        shape: Its shape.
        dtype: Its stored dtype, by NumPy's name.
    """
    return len(shape) >= 2 and dtype in _BITS and prod(shape) > 0


def account(
    view: ModelView,
    ledger: Mapping[str, Applied],
    why_float: Callable[[Op], str],
    census: Sequence[HeldWeight] | None,
) -> Coverage:
    """Return what became of each weight of a model.

    Args:
        view: The model.
        ledger: What became of its ops; an op without a line runs in float.
        why_float: Says of an op whose line gives no reason why it stays float.
        census: What ``Session.census`` returns.

    Raises:
        AdapterFault: As a warning, and as an error where warnings are errors: if the ops and what
            no op claims are not what the census counts.
    """
    held = {weight.name: weight for weight in census or ()}
    read_alone = {weight.name: weight.reason for weight in view.unclaimed}
    users = _claims(view.ops)
    rows = []
    for source, claims in users.items():
        known = held.get(source) or _as_held(source, claims[0][1])
        if counts(known.shape, known.dtype):
            why_alone = read_alone.get(source, "")
            rows.append(_row(known, claims, ledger, why_float, why_alone))
    alone = [weight for weight in view.unclaimed if weight.name not in users]
    rows += [_unclaimed_row(w) for w in alone if counts(w.shape, w.dtype)]
    found = Coverage(tuple(rows))
    fault = difference(found, census) if census is not None else ""
    if fault:
        warnings.warn(AdapterFault(fault), stacklevel=2)
    return found


def _claims(ops: Iterable[Op]) -> dict[str, list[tuple[Op, Weight]]]:
    """Return, for each tensor of the model that ops use, who uses it and as what."""
    users: dict[str, list[tuple[Op, Weight]]] = {}
    for op in ops:
        for weight in op.weights:
            for source in weight.made_of or (weight.name,):
                users.setdefault(source, []).append((op, weight))
    return users


def difference(coverage: Coverage, census: Iterable[HeldWeight]) -> str:
    """Return how a coverage differs from a census of the same model; empty where it does not."""
    counted = {w.name: prod(w.shape) for w in census if counts(w.shape, w.dtype)}
    total = sum(counted.values())
    if coverage.total == total:
        return ""
    told = {row.weight for row in coverage.rows}
    extra = sorted(told - counted.keys())[:_TOLD]
    lacking = sorted(counted.keys() - told)[:_TOLD]
    only_ops = ", ".join(extra) or "none"
    only_model = ", ".join(lacking) or "none"
    return (
        f"ops and unclaimed weights hold {coverage.total:,} elements and the model {total:,}: a "
        f"fault of the backend, please report it (only among the ops: {only_ops}; only in the "
        f"model: {only_model})"
    )


def unclaimed_of(census: Iterable[HeldWeight], ops: Iterable[Op]) -> tuple[HeldWeight, ...]:
    """Return the weights of a census that no op claims by name."""
    claimed = _claims(ops)
    return tuple(
        weight
        for weight in census
        if weight.name not in claimed and counts(weight.shape, weight.dtype)
    )


def _as_held(source: str, weight: Weight) -> HeldWeight:
    return HeldWeight(source, weight.shape, weight.dtype)


def _row(
    weight: HeldWeight,
    claims: Sequence[tuple[Op, Weight]],
    ledger: Mapping[str, Applied],
    why_float: Callable[[Op], str],
    read_alone: str,
) -> CoverageRow:
    """Return the row of a weight that ops claim; ``read_alone`` says who else reads it as it is."""
    reasons: dict[str, str] = {}
    bits = []
    for op, _ in claims:
        line = ledger.get(op.name)
        if line is None or line.applied.weight is None:
            reasons[op.name] = _reason(op, line, why_float)
        else:
            bits.append(line.applied.weight_bits)
    first_reason = next(iter(reasons.values()), "")
    reason = read_alone or first_reason
    if reason and bits:
        # Another op has it quantized: the float tensor is held all the same.
        quantized_by = _quantized_by(claims, reasons)
        reason = f"quantized for {quantized_by!r}, and held in float too: {reason}"
    stored = _BITS[weight.dtype] if reason else max(bits)
    first_op, _ = claims[0]
    elements = prod(weight.shape)
    return CoverageRow(weight.name, weight.shape, elements, first_op.name, stored, reason)


def _quantized_by(claims: Sequence[tuple[Op, Weight]], floats: Mapping[str, str]) -> str:
    return next(op.name for op, _ in claims if op.name not in floats)


def _reason(op: Op, line: Applied | None, why_float: Callable[[Op], str]) -> str:
    if line is not None and not line.applied.is_float:
        return line.reason or "its scheme quantizes activations only"
    return (line.reason if line is not None else "") or why_float(op)


def _unclaimed_row(weight: HeldWeight) -> CoverageRow:
    reason = weight.reason or "no op claims it"
    return CoverageRow(
        weight.name, weight.shape, prod(weight.shape), None, _BITS[weight.dtype], reason
    )
