"""Conservative: from all-float, one op type after the other is quantized, and stays so if the goal is kept."""

from __future__ import annotations

from .fallback import Choice, Fallback
from .sequential import Search, passed

ORDER = (
    "conv",
    "matmul",
    "linear",
)  # neural-compressor's; other types follow, the one with the most weights first


class Conservative(Fallback):
    """At most one evaluation for each op type, and one for each transform where a type fails."""

    def search(self) -> Search:
        """Add type after type."""
        space = self.problem.space
        weights = {kind: sum(u.parameters for u in units) for kind, units in space.types.items()}
        kinds = sorted(
            space.types, key=lambda k: (ORDER.index(k) if k in ORDER else len(ORDER), -weights[k])
        )
        kept: Choice = {}
        left = []
        for kind in kinds:
            wider = kept | {u.name: u.choices[0] for u in space.types[kind]}
            trials = yield from self.run(
                (space.recipe(wider, t) for t in space.transforms), until=passed
            )
            if any(t.passed for t in trials):
                kept = wider
            else:
                left.append(kind)
        done = [k for k in kinds if k not in left]
        self.note = f"quantized: {', '.join(done) or 'no op type'}" + (
            f"; left in float: {', '.join(left)}" if left else ""
        )
