"""How a run shows itself: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from octavo.core.report import text
from octavo.core.tuning.progress import Progress as Callback
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

from .console import err, warn


def duration(seconds: float) -> str:
    """Return seconds as people read them: ``45 s``, ``3 min``, ``2.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def line(trial: Trial, metric: str) -> str:
    """Return one trial in one line."""
    who = f"trial {trial.number} on {trial.recipe.backend}"
    if trial.state == "failed":
        lines = trial.error.strip().splitlines()
        return f"{who} failed: {lines[-1] if lines else 'no error text'}"
    told = ", ".join(figures(trial, metric))
    if trial.state == "rejected":
        return f"{who}: {told}, stopped after {trial.evaluated:.0%} of the samples"
    if not trial.number:
        return f"float model: {told}"
    return f"{who}: {text.bits(trial) or 'float'}: {told}, {verdict(trial)}"


def figures(trial: Trial, metric: str) -> list[str]:
    """Return a trial's score and what it costs, with the shares of float's."""
    found = [f"{metric} {text.score(trial, metric)}"]
    for name, m in trial.objectives.items():
        is_share_known = m.ratio is not None and trial.number > 0
        share = f" ({m.ratio:.2f} of float)" if is_share_known else ""
        found.append(f"{name} {text.measured(m)}{share}")
    return found


def verdict(trial: Trial) -> str:
    """Return whether a trial passes; if it does not, which budgets it overran and by how much."""
    if trial.passed:
        return "passes"
    if not trial.over:
        return "does not pass"
    overruns = [f"{name} by {share - 1:.1%}" for name, share in trial.over.items()]
    return f"over budget: {', '.join(overruns)}"


def magnitude(count: int) -> str:
    """Return a count as people read it; huge ones as a power of ten."""
    if count < 10**9:
        return f"{count:,}"
    # Beyond the range of a float, only the number of digits is told.
    return f"{count:.2e}" if count < 10**300 else f"10^{len(str(count)) - 1}"


class Show(Callback):
    """Shows a run. Use as a context manager."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = err()
        self._quiet = quiet
        self._metric = ""
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Show:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _line(self, message: str) -> None:
        if not self._quiet:
            self._console.print(Text(message))

    def started(
        self, baseline: Trial, goal: str, max_trials: int, space_size: int
    ) -> None:
        """Say where the search starts from, and how large the space is."""
        self._metric = next(iter(baseline.metrics))
        self._line(line(baseline, self._metric))
        size = magnitude(space_size)
        self._line(
            f"goal: {goal}; {size} recipes in the space, at most {max_trials} evaluations"
        )
        if self._console.is_terminal and not self._quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
            )
            self._live = Progress(
                *columns,
                TextColumn("{task.fields[left]}"),
                console=self._console,
                transient=True,
                refresh_per_second=2,
            )
            self._task = self._live.add_task("searching", total=max_trials, left="")
            self._live.start()

    def trying(self, number: int, recipe: Recipe) -> None:
        """Name the trial that runs."""
        if self._live is not None and self._task is not None:
            self._live.update(
                self._task, description=f"trial {number} on {recipe.backend}"
            )

    def finished(
        self, trial: Trial, best: Trial | None, seconds_left: float | None
    ) -> None:
        """Show the trial and the best so far."""
        left = "" if seconds_left is None else f"about {duration(seconds_left)} left"
        so_far = f"best so far: trial {best.number}" if best else "none passes so far"
        if self._live is None or self._task is None:
            self._line(
                "; ".join(filter(None, (line(trial, self._metric), so_far, left)))
            )
            return
        self._line(f"{line(trial, self._metric)}; {so_far}")
        self._live.update(self._task, advance=1, left=f"{so_far}; {left}")

    def note(self, text: str) -> None:
        """Show a remark."""
        if not self._quiet:
            warn(text)

    def ended(self, reason: str) -> None:
        """Say why the search ended."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._line(f"ended: {reason}")
