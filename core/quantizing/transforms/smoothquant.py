"""SmoothQuant: move the difficulty of activations into weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import NeedsConfig
from octavo.core.contract.transform import Observed
from octavo.core.numerics.affine import Array
from octavo.core.values.graph import ModelView, Op
from octavo.core.values.scheme import QuantSpec

from .base import Link, Rescaling, links, usable
from .objective import best_of, input_error, weight_error

_ACTIVATION = QuantSpec(dtype="uint8", symmetric=False)
_WEIGHT = QuantSpec(dtype="int8", granularity="channel")


class SmoothQuantConfig(NeedsConfig):
    """Settings of SmoothQuant.

    Attributes:
        alpha: Share of the difficulty that goes into the weights: a number for all groups, or
            ``auto`` to search each group's from 0 to 1 in steps of 0.1 for the least output error
            of int8 weights and activations.
    """

    kind: Literal["smoothquant"] = "smoothquant"
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = 0.5

    def needs(self, card: frozenset[str]) -> frozenset[str]:
        """Only the search needs the Gram matrix."""
        return card if self.alpha == "auto" else card - {"gram"}


class SmoothQuant(Rescaling):
    """f_j = max|X_j|**alpha / max|W_j|**(1 - alpha) for each input channel j.

    Paper: Xiao et al. 2023, "SmoothQuant", eq. 4. Needs channel ranges; for ``auto`` also the Gram
    matrix. Cost: one pass over the weights, 11 quantizations and products rows x features x
    features with ``auto``.
    """

    config: SmoothQuantConfig

    def factors(
        self,
        view: ModelView,
        tensor: Callable[[str], Array],
        statistics: Observed,
        recipe_ops: Mapping[str, Op],
    ) -> Mapping[str, Array]:
        """Return group name -> factors."""
        found = links(view, tensor, statistics, recipe_ops)
        return {link.group.name: self._of(link) for link in found}

    def _of(self, link: Link) -> Array:
        inputs = link.input_absmax()
        weights = link.weight_absmax()
        if self.config.alpha != "auto":
            return smoothing(inputs, weights, self.config.alpha)
        # Some groups are best left alone.
        unchanged = array_namespace(inputs).ones_like(inputs)
        choices = [unchanged, *(smoothing(inputs, weights, i / 10) for i in range(11))]

        def cost(factors: Array) -> float:
            of_inputs = input_error(link, factors, _ACTIVATION, -inputs, inputs)
            return weight_error(link, factors, _WEIGHT) + of_inputs

        return best_of((cost(factors), factors) for factors in choices)


def smoothing(input_absmax: Array, weight_absmax: Array, alpha: float) -> Array:
    """Return the smoothing factors (eq. 4): float32, shape (channels,).

    Channels that never fired get 1.
    """
    xp = array_namespace(input_absmax, weight_absmax)
    factors = input_absmax**alpha / weight_absmax ** (1 - alpha)
    fired = (input_absmax > 0) & (weight_absmax > 0)
    return usable(xp.where(fired, factors, xp.ones_like(factors)))
