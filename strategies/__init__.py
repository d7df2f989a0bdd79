"""Built-in strategies. A plugin module, as a third party would write one: cards, and no search is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from octavo.core.hookspecs import hookimpl
from octavo.core.parts import Part, PartConfig

Proxy = Literal["output_distance", "weight_error"]


class AutoConfig(PartConfig):
    """Proxy sensitivities, knapsack, a belief that each evaluation corrects.

    Attributes:
        sensitivity: What the knapsack starts from.
        patience: Evaluations beyond log2 of the number of units.
        worthwhile: Expected saving, as a share of the cost, for which an evaluation is still made.
        transforms: At most so many model-wide transforms are evaluated, where their outputs can be compared first.
    """

    kind: Literal["auto"] = "auto"
    sensitivity: Proxy = "output_distance"
    patience: int = Field(default=5, ge=0)
    worthwhile: float = Field(default=0.001, ge=0)
    transforms: int = Field(default=2, ge=1)


class BasicConfig(PartConfig):
    """Whole-model configurations first, then float fallbacks.

    Attributes:
        sensitivity: What orders the fallbacks.
        type_trials: At most so many mixtures of op-type schemes.
    """

    kind: Literal["basic"] = "basic"
    sensitivity: Proxy = "output_distance"
    type_trials: int = Field(default=16, ge=0)


class BayesianConfig(PartConfig):
    """An Optuna study in memory; the accuracy goal is its constraint.

    Attributes:
        sampler: ``tpe``, ``gp`` (needs torch), ``random`` or ``nsgaii``.
        over: What takes one decision: all ops of a ``type``, the ops of one type in one ``block``, or each ``op``.
        startup: Trials drawn at random before the model of ``tpe`` and ``gp`` is asked.
        population: Size of a generation of ``nsgaii``.
    """

    kind: Literal["bayesian"] = "bayesian"
    sampler: Literal["tpe", "gp", "random", "nsgaii"] = "tpe"
    over: Literal["type", "block", "op"] = "type"
    startup: int = Field(default=10, ge=1)
    population: int = Field(default=16, ge=2)


class ExhaustiveConfig(PartConfig):
    """Every recipe of the space, once."""

    kind: Literal["exhaustive"] = "exhaustive"


@hookimpl
def octavo_strategies() -> Iterable[Part[Any]]:
    """Offer the built-in strategies."""
    return (
        Part("auto", "octavo.strategies.auto:Auto", AutoConfig, "sensitivities, knapsack, few evaluations (the default)"),
        Part("basic", "octavo.strategies.basic:Basic", BasicConfig, "whole-model schemes, then float fallbacks by sensitivity"),
        Part("bayesian", "octavo.strategies.bayesian:Bayesian", BayesianConfig, "Optuna: tpe, gp, random or nsgaii"),
        Part("exhaustive", "octavo.strategies.exhaustive:Exhaustive", ExhaustiveConfig, "every recipe, once"),
    )
