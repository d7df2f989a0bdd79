"""Does the best trial stand? It is saved, loaded and scored again, and scored on held-out data."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.core.contract.adapter import Candidate, Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.results.loading import load_candidate
from octavo.core.results.saving import MODEL, save_candidate
from octavo.core.scoring.certificate import Certificate
from octavo.core.scoring.certifying import Certifying
from octavo.core.scoring.scoring import Holdout
from octavo.core.scoring.yardstick import Judged
from octavo.core.tuning.bench import Bench
from octavo.core.tuning.held_out import measure_held_out
from octavo.core.values.recipe import Recipe, adapter_of
from octavo.core.values.trial import Trial

from .final_timing import FinalTiming

ROUNDED = (
    1e-9  # share by which a budget of bytes may be overrun: products of floats round
)


@dataclass(frozen=True)
class Accepted:
    """A trial that stands.

    Attributes:
        trial: It.
        candidate: Its model.
        confirmation: The verdict after it was saved, loaded and scored again; None where that was
            turned off.
        holdout: What it scored on held-out data; None where none was held out.
        certificate: How sure it is on new data; None where that was not asked for.
    """

    trial: Trial
    candidate: Candidate
    confirmation: Judged | None
    holdout: Holdout | None
    certificate: Certificate | None


@dataclass(frozen=True)
class Acceptance:
    """Examines winners.

    Attributes:
        bench: What the run works with.
        opened: The run's backends, the model's own first.
        confirm: Whether a winner is saved, loaded and scored again.
        model: The float model, which some backends need to load what they saved.
        host: Plugins.
        certifying: Certifies winners; None where no confidence is asked for.
        final: Times the best few again, side by side, before one of them is chosen.
        examined: What examined trials scored on held-out data, by number.
    """

    bench: Bench
    opened: tuple[Opened, ...]
    confirm: bool
    model: Any
    host: PluginHost
    certifying: Certifying | None = None
    final: FinalTiming = field(init=False)
    examined: dict[int, tuple[Holdout, Certificate | None]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "final", FinalTiming(self.bench, self.candidate))

    def accept(self) -> Accepted | None:
        """Return the best passing trial that stands, of those that were timed side by side.

        Saved and loaded it still passes, and on the held-out data. One that does not is refused, in
        the history too, and the next best takes its place. None when none is left: the search may
        then go on with what it was not told before.
        """
        bench = self.bench
        while (winner := self._leader()) is not None:
            found = self._examine(winner)
            if isinstance(found, Accepted):
                return found
            bench.refuse(winner, found)
            bench.tell(
                f"trial {winner.number} passed in the search, but not {found}; it is refused"
            )
        return None

    def _leader(self) -> Trial | None:
        self.final.settle()
        return self.bench.best()

    def candidate(self, trial: Trial) -> Candidate:
        """Return a trial's model."""
        return self.bench.backends[trial.recipe.backend].realizer.candidate(
            trial.recipe
        )

    def settings_of(self, recipe: Recipe) -> dict[str, Any]:
        """Return the settings of the backend that a recipe's model was made with."""
        for opened in self.opened:
            if opened.name == recipe.backend and opened.settings is not None:
                return opened.settings.to_save()
        return {}

    def _examine(self, winner: Trial) -> Accepted | str:
        """Return a trial that stands, or where it failed and why."""
        candidate = self.candidate(winner)
        confirmed: Judged | None = None
        clock = self.bench.clock
        if self.confirm and not clock.lacks_time_for("the winner's confirmation"):
            confirmed, problem = self._confirm(candidate, winner)
            if problem:
                return f"after saving and loading it again: {problem}"
        if self._lacks_time_to_hold_out():
            return Accepted(winner, candidate, confirmed, None, None)
        holdout, certificate = self._on_holdout(candidate, confirmed)
        if holdout is not None:
            self.examined[winner.number] = (holdout, certificate)
            if not holdout.passed:
                return f"on the held-out data: {holdout.reason}"
        can_certify = self.certifying is not None and not self.certifying.why
        if can_certify and certificate is not None and not certificate.holds:
            return f"surely enough: {certificate.reason}"
        return Accepted(winner, candidate, confirmed, holdout, certificate)

    def _lacks_time_to_hold_out(self) -> bool:
        """Return whether the held-out data is left out for lack of time.

        Never where a certificate was asked for: without that data there is none.
        """
        if self.certifying is not None or self.bench.held_out is None:
            return False
        return self.bench.clock.lacks_time_for(
            "the winner's score on the held-out data"
        )

    def _on_holdout(
        self, candidate: Candidate, confirmed: Judged | None
    ) -> tuple[Holdout | None, Certificate | None]:
        """Score a winner on the held-out data, and certify it where that is asked for."""
        bench, tries = self.bench, self._tries()
        if bench.held_out is None:
            return None, self.certifying.none(
                tries
            ) if self.certifying is not None else None
        measure_held_out(bench)
        first = bench.scoring.held_out_scores(candidate)
        judged = bench.held_out.confirm(candidate, first, tries)
        holdout = Holdout(
            bench.held_out.baseline, judged.metrics, judged.passed, judged.reason
        )
        if self.certifying is None:
            return holdout, None
        searched = confirmed.scores if confirmed is not None else None
        return holdout, self.certifying.certify(first, searched, tries)

    def _tries(self) -> int:
        """Return how many winners were examined, this one among them."""
        return 1 + sum(bool(t.refused) for t in self.bench.history.trials)

    def _confirm(
        self, candidate: Candidate, winner: Trial
    ) -> tuple[Judged | None, str]:
        """Return the verdict after a round trip through the disk, and why it does not do.

        The second is '' if it does.
        """
        bench = self.bench
        is_own = candidate.recipe.adapter == adapter_of(self.opened[0].name)
        with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
            try:
                facts = {"backend_settings": self.settings_of(candidate.recipe)}
                saved = save_candidate(candidate, Path(folder) / "result", facts)
                loaded = load_candidate(
                    saved, self.model if is_own else None, host=self.host
                )
                first = bench.scoring.full(loaded)
                bench.doubt(winner, first.metrics)
                judged = bench.yardstick.confirm(loaded, first, self._tries())
                size = sum(
                    p.stat().st_size for p in (saved / MODEL).rglob("*") if p.is_file()
                )
            except Exception as error:
                return None, f"{type(error).__name__}: {error}"
        if too_large := self._over_size(size):
            return judged, too_large
        return judged, "" if judged.passed else judged.reason

    def _over_size(self, size: int) -> str:
        """Return by how much saved files overrun the budget; '' where they keep it."""
        limit = self.bench.budgets.get("size", float("inf"))
        whole = self.bench.reference.bytes
        if size <= limit * whole * (1 + ROUNDED):
            return ""
        return f"its files hold {size / whole:.4g} of the float model's, and {limit:g} is allowed"
