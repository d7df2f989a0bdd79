"""Built-in strategies: a plugin module of cards, as a third party would write one.

No search is imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import Part, PartConfig
from octavo.core.contract.strategy import SuggestsTransforms
from octavo.core.values.scheme import PartChoice

_HERE = "octavo.strategies"
Proxy = Literal[
    "auto", "output_distance", "weight_error", "hessian", "gradient", "hessian_trace"
]
"""Which sensitivity; ``auto``: the best one that the backend has."""


class AutoConfig(SuggestsTransforms):
    """Proxy sensitivities, knapsack, a belief that each evaluation corrects.

    Attributes:
        sensitivity: What the knapsack starts from.
        patience: Evaluations beyond log2 of the number of units.
        worthwhile: Expected saving, as a share of the cost, for which an evaluation is still made.
        transforms: At most so many model-wide transforms are evaluated, where their outputs can be
            compared first.
        explore: At most so many other modes and widths are tried for speed once the goal is
            reached, and so many recipes for each further objective among the ties of the one before
            it.
        suggested: Op type -> transform that is compared where the configuration names none.
    """

    kind: Literal["auto"] = "auto"
    suggested: dict[str, PartChoice] = Field(
        default_factory=lambda: {
            "linear": PartChoice(kind="smoothquant"),
            "conv": PartChoice(kind="equalization"),
        }
    )
    sensitivity: Proxy = "auto"
    patience: int = Field(default=5, ge=0)
    worthwhile: float = Field(default=0.001, ge=0)
    transforms: int = Field(default=2, ge=1)
    explore: int = Field(default=3, ge=0)


class BasicConfig(PartConfig):
    """Whole-model configurations first, then float fallbacks.

    Attributes:
        sensitivity: What orders the fallbacks.
        type_trials: At most so many mixtures of op-type schemes.
    """

    kind: Literal["basic"] = "basic"
    sensitivity: Proxy = "auto"
    type_trials: int = Field(default=16, ge=0)


class BayesianConfig(PartConfig):
    """An Optuna study in memory; the accuracy goal is its constraint.

    Attributes:
        sampler: ``tpe``, ``gp`` (needs torch), ``random`` or ``nsgaii``.
        over: What takes one decision: all ops of a ``type``, the ops of one type in one ``block``,
            or each ``op``.
        startup: Trials drawn at random before the model of ``tpe`` and ``gp`` is asked.
        population: Size of a generation of ``nsgaii``.
        warm: Starting points taken from sensitivities: growing shares of what hurts most stay in
            float. Not for ``random``.
    """

    kind: Literal["bayesian"] = "bayesian"
    sampler: Literal["tpe", "gp", "random", "nsgaii"] = "tpe"
    over: Literal["type", "block", "op"] = "type"
    startup: int = Field(default=10, ge=1)
    population: int = Field(default=16, ge=2)
    warm: int = Field(default=3, ge=0)


class ExhaustiveConfig(PartConfig):
    """Every recipe of the space, once."""

    kind: Literal["exhaustive"] = "exhaustive"


class ConservativeConfig(PartConfig):
    """From all-float, one op type after the other."""

    kind: Literal["conservative"] = "conservative"


class RandomConfig(PartConfig):
    """Seeded draws.

    Attributes:
        over: What takes one decision: each ``op``, or all ops of a ``type``.
    """

    kind: Literal["random"] = "random"
    over: Literal["op", "type"] = "op"


class MseConfig(PartConfig):
    """Float fallbacks in the order of each op's own output error."""

    kind: Literal["mse"] = "mse"


class MseV2Config(PartConfig):
    """Float fallbacks ranked again at each step by the error of the model's outputs."""

    kind: Literal["mse_v2"] = "mse_v2"


class HawqV2Config(PartConfig):
    """Float fallbacks in the order of mean Hessian trace times squared weight error."""

    kind: Literal["hawq_v2"] = "hawq_v2"


class AccuracyControlConfig(PartConfig):
    """Greedy: take back what helps most, undo and rank again where it did not help."""

    kind: Literal["accuracy_control"] = "accuracy_control"


class PrefixConfig(PartConfig):
    """Mixed precision by a binary search over steps in the order of sensitivity.

    Attributes:
        sensitivity: What orders the steps.
    """

    kind: Literal["prefix"] = "prefix"
    sensitivity: Proxy = "auto"


class BudgetConfig(PartConfig):
    """Integer program under the run's ``budgets``.

    Attributes:
        sensitivities: What is minimised; one solution is evaluated for each.
    """

    kind: Literal["budget"] = "budget"
    sensitivities: tuple[Proxy, ...] = ("auto",)


class CoordinateConfig(PartConfig):
    """Coordinate descent over transforms, calibrators and algorithms.

    Attributes:
        sweeps: At most so many passes over all settings.
    """

    kind: Literal["coordinate"] = "coordinate"
    sweeps: int = Field(default=3, ge=1)


@hookimpl
def octavo_strategies() -> Iterable[Part[Any]]:
    """Offer the built-in strategies."""
    return (
        Part(
            "auto",
            f"{_HERE}.auto:Auto",
            AutoConfig,
            "sensitivities, knapsack, few evaluations (the default)",
        ),
        Part(
            "basic",
            f"{_HERE}.basic:Basic",
            BasicConfig,
            "whole-model schemes, then float fallbacks by sensitivity",
        ),
        Part(
            "bayesian",
            f"{_HERE}.bayesian:Bayesian",
            BayesianConfig,
            "Optuna: tpe, gp, random or nsgaii",
        ),
        Part(
            "budget",
            f"{_HERE}.budget:Budget",
            BudgetConfig,
            "integer program under bits, size or latency",
        ),
        Part(
            "prefix",
            f"{_HERE}.prefix:Prefix",
            PrefixConfig,
            "mixed precision: sensitivity order, binary search",
        ),
        Part(
            "accuracy_control",
            f"{_HERE}.accuracy_control:AccuracyControl",
            AccuracyControlConfig,
            "greedy: revert what helps most",
        ),
        Part(
            "mse",
            f"{_HERE}.mse:Mse",
            MseConfig,
            "float fallbacks by each op's output error",
        ),
        Part(
            "mse_v2",
            f"{_HERE}.mse:MseV2",
            MseV2Config,
            "float fallbacks by the model's output error, ranked at each step",
        ),
        Part(
            "hawq_v2",
            f"{_HERE}.mse:HawqV2",
            HawqV2Config,
            "float fallbacks by Hessian trace times weight error",
        ),
        Part(
            "conservative",
            f"{_HERE}.conservative:Conservative",
            ConservativeConfig,
            "from float, one op type after the other",
        ),
        Part(
            "coordinate",
            f"{_HERE}.coordinate:Coordinate",
            CoordinateConfig,
            "coordinate descent over settings",
        ),
        Part(
            "random",
            f"{_HERE}.random_search:Random",
            RandomConfig,
            "seeded draws, none twice",
        ),
        Part(
            "exhaustive",
            f"{_HERE}.exhaustive:Exhaustive",
            ExhaustiveConfig,
            "every recipe, once",
        ),
    )
