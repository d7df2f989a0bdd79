"""The ledger: op by op, what was asked for and what really runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .capability import Realization
from .scheme import OpScheme

REDUCED = "its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating"
"""Said in the ledger where a device carries a scheme out with a reduced range."""

_MOVES_CODES = "it carries the codes of its input"
"""The reason that backends give for an op which moves codes."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A line of the ledger: what became of one op.

    Attributes:
        requested: The recipe's scheme.
        applied: What really runs.
        realization: ``kernel`` or ``simulated``; ``codes`` for an op that has nothing to choose and
            moves the codes of its input as they are (a reshape, a max pool).
        reason: Why applied differs from requested, or what else a reader must know; else empty.
    """

    requested: OpScheme
    applied: OpScheme
    realization: Realization = "kernel"
    reason: str = ""

    @property
    def carries_codes(self) -> bool:
        """True if the op computes nothing and moves integer codes: it is not quantized, and it is
        not left in float."""
        return self.realization == "codes"

    @property
    def honoured(self) -> bool:
        """True if what was asked for is what runs.

        A weight of reduced range is of the type and on the kernel that were asked for: that counts,
        and the reason says it.
        """
        return _without_range(self.requested) == _without_range(self.applied)

    def to_row(self) -> list[Any]:
        """Return (realization, reason, applied scheme or None where it is the requested one), for
        JSON beside the recipe."""
        same = self.applied == self.requested
        applied = None if same else self.applied.model_dump(exclude_defaults=True)
        return [self.realization, self.reason, applied]

    @classmethod
    def from_row(cls, requested: OpScheme, row: Sequence[Any]) -> Applied:
        """Read what :meth:`to_row` wrote.

        Args:
            requested: The recipe's scheme of the op.
            row: As it was written.
        """
        realization, reason, applied = row
        scheme = requested if applied is None else OpScheme.model_validate(applied)
        if scheme.is_float and reason == _MOVES_CODES:
            # Results of 0.1.0 say it in words only.
            realization = "codes"
        return cls(requested, scheme, realization, reason)

    def to_json(self) -> dict[str, Any]:
        """Return the line by itself, both schemes written out."""
        return {
            "requested": self.requested.model_dump(exclude_defaults=True),
            "applied": self.applied.model_dump(exclude_defaults=True),
            "realization": self.realization,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Applied:
        """Read what :meth:`to_json` wrote."""
        return cls(
            OpScheme.model_validate(raw["requested"]),
            OpScheme.model_validate(raw["applied"]),
            raw["realization"],
            raw["reason"],
        )


def _without_range(scheme: OpScheme) -> tuple[object, ...]:
    """Return what kernel a scheme asks for, whatever range of its weight's codes is used."""
    weight = scheme.weight.whole() if scheme.weight else None
    return weight, scheme.mode, scheme.input, scheme.output
