"""The time limit of a whole run, from the call to the result, and what was left out to keep it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Counts from the call on: the float model's score, calibration and confirmation are in it.

    Attributes:
        began: ``time.perf_counter()`` at the call.
        limit: Seconds; None for no limit.
        reserve: Seconds that the end of the run is believed to take once there is a winner.
        left_out: What there was no time for.
    """

    began: float = field(default_factory=time.perf_counter)
    limit: float | None = None
    reserve: float = 0.0
    left_out: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the limit; negative beyond it, infinite without one."""
        if self.limit is None:
            return math.inf
        spent = time.perf_counter() - self.began
        return self.limit - spent

    @property
    def ran_out(self) -> bool:
        """True from the limit on."""
        return self.left <= 0

    def until(self, reserve: float = 0.0) -> float | None:
        """Return the seconds that are left but for a reserve; None without a limit."""
        return None if self.limit is None else self.left - reserve

    def lacks_time_for(self, what: str) -> bool:
        """Return whether the limit has passed, and remember what is left out for it."""
        if self.ran_out and what not in self.left_out:
            self.left_out.append(what)
        return self.ran_out

    def told(self, reason: str) -> str:
        """Return a run's reason with what was left out."""
        if not self.left_out:
            return reason
        return f"{reason}; left out for lack of time: {', '.join(self.left_out)}"

    def __str__(self) -> str:
        if self.limit is None:
            return "no time limit"
        return f"the time limit of {self.limit:g} s was reached"
