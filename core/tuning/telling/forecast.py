"""How long a run still takes: the sum over its phases, each by its own measured rate."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

RECENT = 12
"""Items whose mean is the rate. The first one counts only as long as there is no other."""

Now = Callable[[], float]

Spent = tuple[float, float]
"""Seconds without those of phases inside, and with them."""


@dataclass(eq=False)
class Running:
    """A phase that goes on.

    Attributes:
        name: Of the phase.
        total: Items in all; None where that is not known.
        done: Items that are finished.
        about: What it works on, in a few words.
        each: Seconds of an item, as believed before one is measured; None where nothing is.
        expected: Seconds of the whole phase, as believed before it began; None likewise.
        remaining: Items that are still to come where these are fewer than ``total`` says.
        number: Counts the phases of a run.
        own: Seconds spent in it, without those of phases inside it.
        is_whole: Whether the phases inside it count as parts of its items.
    """

    name: str
    total: int | None
    done: int = 0
    about: str = ""
    each: float | None = None
    expected: float | None = None
    remaining: int | None = None
    number: int = 0
    own: float = 0.0
    is_whole: bool = False
    _began: float = 0.0
    _since: float | None = None
    _item_began: Spent = (0.0, 0.0)
    _counted: int = 0
    _took: deque[Spent] = field(default_factory=lambda: deque(maxlen=RECENT))

    def begin(self, now: float) -> None:
        """Begin."""
        self._began = now
        self.go_on(now)

    def go_on(self, now: float) -> None:
        """Count time from now on."""
        self._since = now

    def pause(self, now: float) -> None:
        """Count no more time: another phase begins inside this one."""
        self.own = self.spent(now)
        self._since = None

    def spent(self, now: float) -> float:
        """Return the seconds spent in it so far."""
        return self.own if self._since is None else self.own + now - self._since

    def advance(self, done: int, now: float) -> None:
        """Count items that were finished."""
        items = done - self.done
        if items > 0:
            if self._is_first_alone:
                self._took.clear()
            own, whole = self._in_item(now)
            self._took.extend([(own / items, whole / items)] * min(items, RECENT))
            self._counted += items
        self._item_began = self.spent(now), now - self._began
        self.done = done

    @property
    def _is_first_alone(self) -> bool:
        """Whether one item alone is measured: it paid for what the others find done."""
        return self._counted == 1

    def _in_item(self, now: float) -> Spent:
        """Return the seconds spent in the item under way."""
        own, whole = self._item_began
        return self.spent(now) - own, now - self._began - whole

    def item_left(self, now: float) -> float:
        """Return the seconds that the item under way still takes; 0 where that is not known."""
        each = self._rate()
        if each is None or not self._to_come():
            return 0.0
        return max(0.0, each - self._in_item(now)[self.is_whole])

    def left(self, now: float) -> float | None:
        """Return the seconds that it still takes; None while that is not known."""
        each = self._rate()
        items = self._to_come()
        if each is not None and items is not None:
            return self.item_left(now) + max(0, items - 1) * each
        if self.expected is None:
            return None
        return max(0.0, self.expected - self.spent(now))

    def _rate(self) -> float | None:
        if self._took:
            return sum(took[self.is_whole] for took in self._took) / len(self._took)
        return self.each

    def _to_come(self) -> int | None:
        """Return how many items are not finished; None where that is not known."""
        if self.remaining is not None:
            return self.remaining
        return None if self.total is None else max(0, self.total - self.done)


class Forecast:
    """Adds up what the phases of a run still take.

    Args:
        ahead: Names of the phases that are to come; how long each takes is not known yet.
        now: Returns the time in seconds.
    """

    def __init__(self, ahead: tuple[str, ...], now: Now) -> None:
        self._now = now
        self._ahead: dict[str, float | None] = dict.fromkeys(ahead)
        self._running: list[Running] = []

    @property
    def running(self) -> Running | None:
        """The innermost phase that goes on; None between two."""
        return self._running[-1] if self._running else None

    def expect(self, name: str, seconds: float | None) -> None:
        """Say what a phase to come is believed to take; None where that is not known."""
        self._ahead[name] = seconds

    def begin(self, phase: Running) -> None:
        """Let a phase begin, inside the one that goes on."""
        now = self._now()
        if self.running is not None:
            self.running.pause(now)
        expected = self._ahead.pop(phase.name, None)
        if phase.total is None:
            # Where items can be counted, their rate says it.
            phase.expected = expected
        phase.begin(now)
        self._running.append(phase)

    def end(self, phase: Running) -> None:
        """Let a phase end, and what began inside it and did not end by itself."""
        if phase not in self._running:
            return
        now = self._now()
        while self._running:
            ended = self._running.pop()
            ended.pause(now)
            # What was expected of it is over, even if it begins again.
            self._ahead.setdefault(ended.name, 0.0)
            if ended is phase:
                break
        if self.running is not None:
            self.running.go_on(now)

    def left(self) -> float | None:
        """Return the seconds until the end of the run; None while a part of it is not known."""
        now = self._now()
        parts = [phase.left(now) for phase in self._running]
        parts += self._ahead.values()
        known = [seconds for seconds in parts if seconds is not None]
        return sum(known) if len(known) == len(parts) else None


__all__ = ["Forecast", "Running"]
