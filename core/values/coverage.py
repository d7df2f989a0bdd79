"""Which weights a candidate quantizes, and which stay float: every weight of the model is told of.

What counts is every distinct floating tensor of two or more dimensions that the model's forward
uses. An op claims its weights; what no op claims stands in ``ModelView.unclaimed`` with its reason.
Both together are held against the backend's census, which is taken from the model's tensors and not
from its ops: a layer that the backend does not see then shows as a difference, instead of missing
without a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from octavo.core.errors import AdapterFault, ConfigError
from octavo.core.system.log import fault

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
        by_reason: dict[str, list[CoverageRow]] = {}
        for row in self.rows:
            if row.is_float:
                rows = by_reason.setdefault(row.reason, [])
                rows.append(row)

        def size(reason: str) -> int:
            return _elements(by_reason[reason])

        largest_first = sorted(by_reason, key=size, reverse=True)
        return tuple((reason, tuple(by_reason[reason])) for reason in largest_first)

    def summary(self) -> str:
        """Return one line: how many weights stay float, and the largest reasons."""
        if not self.total:
            return "the model has no weights of two or more dimensions"
        if not self.kept:
            return f"all {self.total:,} weights are quantized"
        percent = 100 * self.kept / self.total
        reasons = self.reasons
        told = [_told(reason, rows) for reason, rows in reasons[:_TOLD]]
        left = len(reasons) - _TOLD
        if left > 0:
            told.append(f"and {left} more")
        why = "; ".join(told)
        return f"{self.kept:,} of {self.total:,} weights ({percent:.3g} %) stay float: {why}"

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        counts = (
            f"total={self.total:,}, quantized={self.quantized:,}, kept={self.kept:,}"
        )
        lines = [f"Coverage({counts}, {len(self.rows)} rows)"]
        for reason, rows in self.reasons[:_TOLD]:
            lines.append(_told(reason, rows))
        return "\n  ".join(lines)

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
    weight: str,
    shape: Sequence[int],
    elements: int,
    op: str | None,
    bits: int,
    reason: str,
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
    left = len(rows) - _TOLD
    if left > 0:
        names += f" and {left} more"
    elements = _elements(rows)
    return f"{elements:,} in {names} ({reason})"


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
        known = held.get(source)
        if known is None:
            _, weight = claims[0]
            known = HeldWeight(source, weight.shape, weight.dtype)
        if counts(known.shape, known.dtype):
            becomes = _Becoming(claims, ledger, why_float)
            why_alone = read_alone.get(source, "")
            rows.append(becomes.row(known, why_alone))
    for held_weight in view.unclaimed:
        is_claimed = held_weight.name in users
        if not is_claimed and counts(held_weight.shape, held_weight.dtype):
            row = _unclaimed_row(held_weight)
            rows.append(row)
    found = Coverage(tuple(rows))
    if census is not None:
        differing = difference(found, census)
        if differing:
            fault(AdapterFault(differing), "adapters")
    return found


Claims = list[tuple[Op, Weight]]
"""Who uses a tensor of the model, and as what."""


def _claims(ops: Iterable[Op]) -> dict[str, Claims]:
    """Return the claims on each tensor of the model that ops use."""
    users: dict[str, Claims] = {}
    for op in ops:
        for weight in op.weights:
            sources = weight.made_of or (weight.name,)
            for source in sources:
                claims = users.setdefault(source, [])
                claims.append((op, weight))
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


def unclaimed_of(
    census: Iterable[HeldWeight], ops: Iterable[Op]
) -> tuple[HeldWeight, ...]:
    """Return the weights of a census that no op claims by name."""
    claimed = _claims(ops)
    return tuple(
        weight
        for weight in census
        if weight.name not in claimed and counts(weight.shape, weight.dtype)
    )


@dataclass(frozen=True)
class _Becoming:
    """What became of a weight, by the lines of those who use it."""

    claims: Claims
    ledger: Mapping[str, Applied]
    why_float: Callable[[Op], str]

    def row(self, weight: HeldWeight, read_alone: str) -> CoverageRow:
        """Return the weight's row; ``read_alone`` says who else reads it as it is."""
        quantized_by: list[str] = []
        reasons: list[str] = []
        bits = 0
        for op, _ in self.claims:
            line = self.ledger.get(op.name)
            if line is None or line.applied.weight is None:
                reasons.append(self._reason(op, line))
                continue
            quantized_by.append(op.name)
            bits = max(bits, line.applied.weight_bits)
        reason = read_alone
        if not reason and reasons:
            reason = reasons[0]
        if reason and quantized_by:
            # Another op has it quantized: the float tensor is held all the same.
            reason = (
                f"quantized for {quantized_by[0]!r}, and held in float too: {reason}"
            )
        if reason:
            bits = _BITS[weight.dtype]
        first_op, _ = self.claims[0]
        elements = prod(weight.shape)
        return CoverageRow(
            weight.name, weight.shape, elements, first_op.name, bits, reason
        )

    def _reason(self, op: Op, line: Applied | None) -> str:
        if line is None:
            return self.why_float(op)
        if not line.applied.is_float:
            return line.reason or "its scheme quantizes activations only"
        return line.reason or self.why_float(op)


def _unclaimed_row(weight: HeldWeight) -> CoverageRow:
    reason = weight.reason or "no op claims it"
    return CoverageRow(
        weight.name, weight.shape, prod(weight.shape), None, _BITS[weight.dtype], reason
    )
