"""AWQ's scale search: protect the weights of channels that matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import NeedsConfig
from octavo.core.contract.transform import Observed
from octavo.core.numerics.affine import Array
from octavo.core.values.graph import ModelView, Op
from octavo.core.values.scheme import QuantSpec

from .base import Link, Rescaling, channel_energy, links, usable
from .objective import best_of, weight_error


class AwqScaleConfig(NeedsConfig):
    """Settings of AWQ's scale search.

    Attributes:
        source: ``inputs`` searches an exponent of what calibration saw of the inputs; ``weights``
            takes the inverse of each channel's mean absolute weight and needs no data.
        dtype: Of the weights that the error is taken for.
        symmetric: Likewise.
        granularity: Likewise.
        grid: Number of exponents that are tried, from 0 to 1.
    """

    kind: Literal["awq"] = "awq"
    source: Literal["inputs", "weights"] = "inputs"
    dtype: str = "int4"
    symmetric: bool = True
    granularity: str = "group:32"
    grid: int = Field(20, ge=1)

    def needs(self, card: frozenset[str]) -> frozenset[str]:
        """Nothing is observed where weights are the source."""
        return card if self.source == "inputs" else card - {"gram"}


class AwqScale(Rescaling):
    """f = s**a, normalised to sqrt(max f * min f) = 1, with the a in [0, 1] of least output error.

    The error is ||(Q(W f) / f - W) X||^2. Paper: Lin et al. 2024, "AWQ: Activation-aware Weight
    Quantization", eqs. 4 and 5. s is the root mean square of each channel, off the Gram matrix's
    diagonal, where the paper takes the mean magnitude.

    With ``source = "weights"``, f = 1 / mean |W| of each channel, over all rows that it meets: all
    channels then use the grid alike. Source: NNCF, AWQ without a dataset (``_data_free_step`` in
    nncf/quantization/algorithms/weight_compression/awq.py).

    Needs the Gram matrix. Cost: a quantization and a product rows x features x features for each
    exponent. Without data: one pass over the weights.
    """

    config: AwqScaleConfig

    def factors(
        self,
        view: ModelView,
        tensor: Callable[[str], Array],
        statistics: Observed,
        recipe_ops: Mapping[str, Op],
    ) -> Mapping[str, Array]:
        """Return group name -> factors."""
        found_links = links(view, tensor, statistics, recipe_ops)
        if self.config.source == "weights":
            return {link.group.name: inverse_size(link) for link in found_links}
        spec = QuantSpec(
            dtype=self.config.dtype,
            symmetric=self.config.symmetric,
            granularity=self.config.granularity,
        )
        found = {}
        for link in found_links:
            size = channel_energy(link) ** 0.5
            choices = [
                importance(size, i / self.config.grid)
                for i in range(self.config.grid + 1)
            ]
            found[link.group.name] = best_of(
                (weight_error(link, f, spec), f) for f in choices
            )
        return found


def importance(size: Array, exponent: float) -> Array:
    """Return size**exponent, normalised: its largest and smallest are each other's inverse."""
    xp = array_namespace(size)
    raw = usable(size**exponent)
    return usable(raw / (xp.max(raw) * xp.min(raw)) ** 0.5)


def inverse_size(link: Link) -> Array:
    """Return 1 / mean |W| of each channel over the rows of all members, times their mean.

    Channels without weights get 1. Shape (channels,), float32.
    """
    weights = link.weights()
    xp = array_namespace(weights[0])
    sums = [xp.sum(xp.abs(matrix), axis=1) for matrix in weights]
    # Sums do as well as means, for all channels meet the same number of weights.
    size = sum(sums[1:], start=sums[0])
    typical = xp.mean(size)
    is_there = size > 0
    inverse = typical / xp.where(is_there, size, xp.ones_like(size))
    return usable(xp.where(is_there, inverse, xp.ones_like(inverse)))
