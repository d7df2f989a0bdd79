"""Recovery: what a recipe learns from data after quantization, carried out by the backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.core.contract.adapter import Candidate, Opened, OpParameters, Session
from octavo.core.contract.recovery import (
    QAT,
    RECONSTRUCTION,
    RECOVERIES,
    check_recovery,
    held_back,
    nothing_to_learn,
    recovery_settings,
)
from octavo.core.contract.training import Training
from octavo.core.errors import ConfigError, DataError, SchemeError
from octavo.core.values.calls import Batch
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice

TrainFn = Callable[[Any], Any]
"""Trains the backend's own model (the nn.Module) in place, and returns it or None."""

Parameters = Mapping[str, OpParameters]


@dataclass(frozen=True)
class Kept:
    """A model that something was learned for, as it was kept.

    Attributes:
        candidate: It.
        seconds: What it cost to learn.
    """

    candidate: Candidate
    seconds: float


class Keeps(Protocol):
    """Keeps models that something was learned for, so that it is learned once."""

    def load(self, recipe: Recipe) -> Kept | None:
        """Return the model of a recipe; None where it was not kept."""

    def save(self, candidate: Candidate, seconds: float) -> None:
        """Keep a model that took so long to learn."""

    def forget(self, recipe: Recipe) -> None:
        """Delete a model that is of no further use."""


class Recovering:
    """Learns what recipes ask for after quantization, on one backend.

    Args:
        opened: The session.
        train_fn: For ``qat``; None where there is none.

    Attributes:
        batches: Calibration batches, which can be read again; None before calibration.
        keeps: Keeps what was learned; None learns it each time that it is asked for.
        seconds: What the last model cost to learn, in this process or in the one that kept it.
        seed: Of the random numbers that training draws.
        run: Runs the function that trains, perhaps in another process; None calls it here.
    """

    def __init__(self, opened: Opened, train_fn: TrainFn | None) -> None:
        self.batches: Iterable[Batch] | None = None
        self.keeps: Keeps | None = None
        self.seconds = 0.0
        self.seed = 0
        self.run: Callable[..., Any] | None = None
        self._opened = opened
        self._train_fn = train_fn

    def check(self, recipe: Recipe, *, has_data: bool | None = None) -> None:
        """Look at a recipe's recovery, before any work.

        Args:
            recipe: With its steps.
            has_data: Whether there is calibration data; None where calibration was done.

        Raises:
            ConfigError: If one is unknown, has a wrong setting or a wrong place, or if there is no
                function that trains.
            SchemeError: If this backend does not learn so, or the recipe leaves nothing to learn.
            DataError: If there is no calibration data to learn from.
        """
        steps = recipe.recovery
        check_recovery(steps)
        if has_data is None:
            has_data = self.batches is not None
        for step in steps:
            why = self.lacks(step.kind) or nothing_to_learn(step.kind, recipe)
            if why:
                raise SchemeError(f"recovery {step.kind!r}: {why}")
            if step.kind == QAT and self._train_fn is None:
                raise ConfigError(
                    "recovery 'qat' needs a function that trains: give train_fn, which takes the "
                    "model and trains it"
                )
            if step.kind != QAT and not has_data:
                raise DataError(
                    f"recovery {step.kind!r} learns from calibration data: give calibration="
                )

    def lacks(self, kind: str) -> str:
        """Return why this backend does not carry a kind of recovery out; '' where it does."""
        known = RECOVERIES[kind]
        if known.feature in self._opened.capability.features:
            return ""
        return (
            f"backend {self._opened.name!r} offers no {known.what} (no feature {known.feature!r}): "
            "the torch backend does"
        )

    def known(self, recipe: Recipe) -> Candidate | None:
        """Return the model of a recipe that was learned before; None where it was not kept."""
        found = self.keeps.load(recipe) if self.keeps is not None else None
        if found is None:
            return None
        self.seconds = found.seconds
        return found.candidate

    def keep(self, candidate: Candidate) -> None:
        """Keep the model that was learned last."""
        if self.keeps is not None:
            self.keeps.save(candidate, self.seconds)

    def forget(self, recipe: Recipe) -> None:
        """Let go of a model that is of no further use."""
        if self.keeps is not None:
            self.keeps.forget(recipe)

    def candidate(
        self, session: Session, recipe: Recipe, parameters: Parameters
    ) -> Candidate:
        """Return a recipe's model after its recovery.

        Args:
            session: The float session after the recipe's transforms.
            recipe: What is quantized, and what is learned after it.
            parameters: What post-training quantization makes of it.

        Raises:
            SchemeError: If what is quantized cannot be learned so.
        """
        began = time.perf_counter()
        try:
            training = session.training()
            steps, learned = self._begun(recipe, parameters)
            for step in steps:
                if step.kind == QAT:
                    return self._trained(training, step, recipe, learned)
                learned = self._learned(training, step, learned)
            return session.apply(recipe, learned)
        finally:
            self.seconds = time.perf_counter() - began

    def _begun(
        self, recipe: Recipe, parameters: Parameters
    ) -> tuple[Sequence[PartChoice], Parameters]:
        """Return the steps that are still to be taken, and where they begin.

        That is what the most steps made whose model was kept.
        """
        steps = recipe.recovery
        for count in range(len(steps) - 1, 0, -1):
            before = recipe.unrecovered.recovered(*steps[:count])
            kept = self.keeps.load(before) if self.keeps is not None else None
            learned = kept.candidate.decided() if kept is not None else {}
            if parameters.keys() <= learned.keys():
                return steps[count:], {name: learned[name] for name in parameters}
        return steps, parameters

    def _learned(
        self, training: Training, step: PartChoice, start: Parameters
    ) -> dict[str, OpParameters]:
        assert self.batches is not None
        settings: Any = recovery_settings(step)
        is_by_block = step.kind == RECONSTRUCTION
        if not is_by_block:
            return training.distill(start, self.batches, settings)
        batches = self.batches
        if settings.hold_back:
            every = list(batches)
            judges = held_back(len(every))
            batches = [batch for i, batch in enumerate(every) if i not in judges]
        return training.reconstruct(start, batches, settings)

    def _trained(
        self, training: Training, step: PartChoice, recipe: Recipe, start: Parameters
    ) -> Candidate:
        assert self._train_fn is not None
        settings: Any = recovery_settings(step)
        seen = self.batches or ()
        prepared = training.prepare_qat(recipe, start, settings, seen)
        trained = prepared.train(self._train_fn, self.seed, self.run)
        return prepared.convert(trained)
