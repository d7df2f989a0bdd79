"""What a run is shown on: a pipe or file, a terminal, a notebook."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

EVERY = 9.0
"""Seconds after which a pipe is told again where the run is: ten at most are promised."""

REFRESH = 1.0  # seconds between two pictures in a notebook

QUICK = 0.25  # seconds between two pictures in a notebook, where much happens

BAR = 16  # columns of the bar: with the longest texts a line fits in 80


@dataclass(frozen=True)
class Status:
    """Where a run is.

    Attributes:
        step: What it is at.
        share: Of that, what is done, from 0 to 1; None where that is not known.
        spent: How long it has been at it.
        left: What is left of the run.
    """

    step: str
    share: float | None
    spent: str
    left: str

    def __str__(self) -> str:
        return f"{self.step}, for {self.spent} now; {self.left}"


Look = Callable[[], Status | None]
"""Returns where the run is now; None between two phases."""


class Surface(Protocol):
    """Shows lines that stay, and where the run is.

    Attributes:
        says_time_left: Whether lines of trials say it, for lack of a place where it always stands.
    """

    says_time_left: bool

    def say(self, line: Text) -> None:
        """Show a line that stays."""

    def begin(self) -> None:
        """Begin to show where the run is."""

    def changed(self) -> None:
        """Take notice that the run is somewhere else."""

    def beat(self) -> float:
        """Show that the run goes on; return the seconds until the next time."""

    def close(self) -> None:
        """Show no longer where the run is."""


class Lines:
    """A pipe or a file: a line whenever there is something to say, or nothing was for a while.

    Args:
        look: Asked whenever something is drawn.
        every: Seconds without a line after which one says where the run is.
    """

    says_time_left = True

    def __init__(self, look: Look, every: float = EVERY) -> None:
        self._look = look
        self._every = every
        self._said = time.monotonic()

    def say(self, line: Text) -> None:
        """Print a line."""
        self._said = time.monotonic()
        _console().print(line)

    def beat(self) -> float:
        """Print where the run is if nothing was printed for a while."""
        due = self._said + self._every - time.monotonic()
        if due > 0:
            return due
        status = self._look()
        if status is not None:
            self.say(Text(str(status)))
        return self._every

    def begin(self) -> None:
        """Wait: the first line comes when there is something to say."""

    def changed(self) -> None:
        """Wait: what has changed is said when a line is due."""

    def close(self) -> None:
        """Leave everything as it is: lines stay."""


class Terminal:
    """A line at the bottom of a terminal that moves with the run.

    Args:
        look: Asked whenever something is drawn.
    """

    says_time_left = False

    def __init__(self, look: Look) -> None:
        self._look = look
        self._console = _console()
        self._live: Live | None = None

    def say(self, line: Text) -> None:
        """Print a line above the moving one."""
        self._console.print(line)

    def begin(self) -> None:
        """Draw the moving line."""
        if self._live is None:
            self._live = Live(
                get_renderable=self._drawn,
                console=self._console,
                transient=True,
                refresh_per_second=4,
                # What goes to a file must not end on the terminal.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()

    def changed(self) -> None:
        """Wait: the line looks by itself where the run is."""

    def beat(self) -> float:
        """Leave it to the line, which moves by itself."""
        return EVERY

    def close(self) -> None:
        """Take the moving line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _drawn(self) -> Table | Text:
        status = self._look()
        if status is None:
            return Text("")
        drawn = Table.grid(padding=(0, 1))
        for _ in range(4):
            drawn.add_column(no_wrap=True)
        bar = ProgressBar(
            total=None if status.share is None else 1.0,
            completed=status.share or 0.0,
            width=BAR,
        )
        drawn.add_row(Text(status.step), bar, Text(status.spent), Text(status.left))
        return drawn


class Notebook:
    """One output of a notebook's cell that is drawn anew as the run goes on.

    Args:
        look: Asked whenever something is drawn.
    """

    says_time_left = False

    def __init__(self, look: Look) -> None:
        self._look = look
        self._lines: list[Text] = []
        self._handle: Any = None
        self._drawn_at = 0.0
        self._is_open = False

    def say(self, line: Text) -> None:
        """Add a line."""
        self._lines.append(line)
        self._draw()

    def begin(self) -> None:
        """Draw where the run is below the lines."""
        self._is_open = True
        self._draw()

    def changed(self) -> None:
        """Draw anew, unless that was just done."""
        if time.monotonic() - self._drawn_at > QUICK:
            self._draw()

    def beat(self) -> float:
        """Draw anew: time goes on where nothing else does."""
        self._draw()
        return REFRESH

    def close(self) -> None:
        """Leave the lines alone."""
        if self._is_open:
            self._is_open = False
            self._draw()

    def _draw(self) -> None:
        # Only where a notebook runs, which has it.
        display = import_module("IPython.display").display
        self._drawn_at = time.monotonic()
        status = self._look() if self._is_open else None
        picture = {
            "text/plain": "\n".join(self._plain(status)),
            "text/html": self._html(status),
        }
        if self._handle is None:
            self._handle = display(picture, raw=True, display_id=True)
        else:
            self._handle.update(picture, raw=True)

    def _plain(self, status: Status | None) -> list[str]:
        lines = [line.plain for line in self._lines]
        return lines if status is None else [*lines, str(status)]

    def _html(self, status: Status | None) -> str:
        lines = "".join(f"<div>{html.escape(t.plain)}</div>" for t in self._lines)
        if status is None:
            return lines
        value = "" if status.share is None else f' value="{status.share:.3f}"'
        label = html.escape(status.step, quote=True)
        said = html.escape(str(status))
        bar = f'<progress{value} aria-label="{label}"></progress>'
        return f"{lines}<div>{bar} {said}</div>"


def _console() -> Console:
    """Return a console on standard error, made anew: ``sys.stderr`` may be redirected."""
    return Console(
        file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


def in_notebook() -> bool:
    """Return whether this code runs in a notebook's kernel, which can draw a picture anew."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


def on_terminal() -> bool:
    """Return whether standard error is a terminal that can draw a line anew."""
    return _console().is_terminal


def surface(look: Look, every: float = EVERY) -> Surface:
    """Return what a run is shown on here."""
    if in_notebook():
        return Notebook(look)
    return Terminal(look) if on_terminal() else Lines(look, every)


__all__ = ["EVERY", "Status", "Surface", "in_notebook", "on_terminal", "surface"]
