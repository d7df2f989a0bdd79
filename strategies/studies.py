"""Optuna studies that live in memory: what draws, and which way each value points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import optuna
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import StudyDirection

from octavo.core.errors import MissingFramework

from . import BayesianConfig


def sampler_of(config: BayesianConfig, seed: int) -> BaseSampler:
    """Return the sampler that a configuration names.

    Raises:
        MissingFramework: If the ``gp`` sampler is asked for and torch is not installed.
    """
    if config.sampler == "gp":
        if find_spec("torch") is None:
            raise MissingFramework(
                "the gp sampler needs torch: pip install 'octavo[torch]', or take sampler = \"tpe\""
            )
        return GPSampler(seed=seed, n_startup_trials=config.startup)
    if config.sampler == "nsgaii":
        return NSGAIISampler(seed=seed, population_size=config.population)
    if config.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=config.startup)


def study_in_memory(objectives: int, sampler: BaseSampler) -> optuna.Study:
    """Return a study that minimises so many values, or one where there is none."""
    directions = [StudyDirection.MINIMIZE] * max(1, objectives)
    with _quiet():
        return optuna.create_study(directions=directions, sampler=sampler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing a study that lives in memory."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
