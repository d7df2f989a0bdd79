"""The ledger: op by op, what was asked for and what really runs."""

from __future__ import annotations

from dataclasses import dataclass

from .capability import Realization
from .scheme import OpScheme

REDUCED = "its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating"
"""Said in the ledger where a device carries a scheme out with a reduced range."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A line of the ledger: what became of one op.

    Attributes:
        requested: The recipe's scheme.
        applied: What really runs.
        realization: ``kernel`` or ``simulated``; ``codes`` for an op that has nothing to choose and moves the codes of its
            input as they are (a reshape, a max pool).
        reason: Why applied differs from requested, or what else a reader must know; else empty.
    """

    requested: OpScheme
    applied: OpScheme
    realization: Realization = "kernel"
    reason: str = ""

    @property
    def carries_codes(self) -> bool:
        """True if the op computes nothing and moves integer codes: it is not quantized, and it is not left in float."""
        return self.realization == "codes"

    @property
    def honoured(self) -> bool:
        """True if what was asked for is what runs.

        A weight of reduced range is of the type and on the kernel that were asked for: that counts, and the reason says it.
        """
        r, a = self.requested, self.applied
        weights = [s.weight.whole() if s.weight else None for s in (r, a)]
        same_weight = weights[0] == weights[1]
        return same_weight and (r.mode, r.input, r.output) == (a.mode, a.input, a.output)
