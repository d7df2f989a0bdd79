"""Outlier Suppression and Outlier Suppression+: outliers of activations go into weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import NeedsConfig
from octavo.core.contract.parts import PartConfig
from octavo.core.contract.transform import Observed
from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import ChannelMap, Factors
from octavo.core.values.graph import Group, ModelView, Op
from octavo.core.values.scheme import QuantSpec

from .base import Link, Rescaling, links, usable
from .norms import UNKNOWN, gain_and_shift
from .objective import best_of, input_error, weight_error

_ACTIVATION = QuantSpec(dtype="uint8", symmetric=False)
_WEIGHT = QuantSpec(dtype="int8", granularity="channel")


class OutlierSuppressionConfig(PartConfig):
    """Gain migration has no settings; its token-wise clipping is the calibrator ``token``."""

    kind: Literal["outlier_suppression"] = "outlier_suppression"


class OutlierSuppression(Rescaling):
    """f = |gain| of the norm before: of a layer, RMS or folded batch norm.

    The norm then scales nothing, and the weights that read it take its gain. A norm that stores its
    gain less one (Gemma's) gives 1 + w.

    Paper: Wei et al. 2022, "Outlier Suppression: Pushing the Limit of Low-bit Transformer Language
    Models", section 4.1, eqs. 3 and 4 (gamma migration). Needs the norm's parameters alone. Cost:
    none to speak of.
    """

    def passes_over(self, group: Group) -> str:
        """Return why a norm's gain cannot be had."""
        return "" if group.gain else UNKNOWN

    def factors(
        self,
        view: ModelView,
        tensor: Callable[[str], Array],
        statistics: Observed,
        recipe_ops: Mapping[str, Op],
    ) -> Mapping[str, Array]:
        """Return group name -> factors; groups that no norm produces are left alone."""
        found = {}
        for link in links(view, tensor, statistics, recipe_ops):
            known = gain_and_shift(link)
            if known is not None:
                gain, _ = known
                found[link.group.name] = usable(array_namespace(gain).abs(gain))
        return found


class OutlierSuppressionPlusConfig(NeedsConfig):
    """Settings of Outlier Suppression+.

    Attributes:
        grid: Number of thresholds that are tried between the smallest and the largest channel
            range.
        shift: Centre each channel on zero first, where a group takes shifts.
    """

    kind: Literal["outlier_suppression_plus"] = "outlier_suppression_plus"
    grid: int = Field(20, ge=1)
    shift: bool = True

    def needs(self, card: frozenset[str]) -> frozenset[str]:
        """A shifted input's Gram matrix takes the means."""
        return card if self.shift else card - {"channel_mean"}


class OutlierSuppressionPlus(Rescaling):
    """x' = (x - z) / f, z the middle of each channel's range, f_j = max(1, max|X_j - z_j| / t).

    The threshold t is searched.

    Paper: Wei et al. 2023, "Outlier Suppression+: Accurate quantization of large language models by
    equivalent and optimal shifting and scaling", eqs. 3 to 6, for the least error at the outputs of
    all members together. Groups that take no
    shift are scaled alone, and so are those that lose by one: what lies mostly at one end of its
    range, as behind GELU and ReLU, is moved away from zero by it, and the rounding of the weights
    then weighs more.

    Needs channel ranges, the Gram matrix and means. Cost: a quantization and a product rows x
    features x features a threshold.
    """

    config: OutlierSuppressionPlusConfig

    @property
    def carries(self) -> frozenset[str]:
        """Scales, and shifts unless they are turned off."""
        return frozenset({"scale", "shift"} if self.config.shift else {"scale"})

    def factors(
        self,
        view: ModelView,
        tensor: Callable[[str], Array],
        statistics: Observed,
        recipe_ops: Mapping[str, Op],
    ) -> Mapping[str, Factors]:
        """Return group name -> channel map."""
        found = links(view, tensor, statistics, recipe_ops)
        return {link.group.name: self._of(link) for link in found}

    def _of(self, link: Link) -> ChannelMap:
        low, high = link.input_range()
        shifts: list[Array | None] = [None]
        if self.carries <= link.group.takes and "shift" in self.carries:
            shifts.append(channel_shift(low, high))
        return best_of(
            pair for shift in shifts for pair in self._tried(link, low, high, shift)
        )

    def _tried(
        self, link: Link, low: Array, high: Array, shift: Array | None
    ) -> Iterator[tuple[float, ChannelMap]]:
        """Yield a cost and a map for each threshold."""
        if shift is not None:
            low = low - shift
            high = high - shift
        xp = array_namespace(low)
        absmax = xp.maximum(xp.abs(low), xp.abs(high))
        grams = link.grams(shift)
        for threshold in thresholds(absmax, self.config.grid):
            factors = threshold_factors(absmax, threshold)
            of_weights = weight_error(link, factors, _WEIGHT, grams)
            of_inputs = input_error(link, factors, _ACTIVATION, low, high)
            yield of_weights + of_inputs, ChannelMap(factors, shift)


def thresholds(absmax: Array, count: int) -> list[float]:
    """Return thresholds from the largest channel range down to the smallest, by equal ratios.

    The paper's lie at equal distances: those leave a model alone whose channels are powers of two
    apart.
    """
    xp = array_namespace(absmax)
    alive = xp.where(absmax > 0, absmax, xp.max(absmax))
    largest, smallest = float(xp.max(alive)), float(xp.min(alive))
    if largest <= 0 or count == 1:
        return [largest]
    ratio = smallest / largest
    return [largest * ratio ** (i / (count - 1)) for i in range(count)]


def threshold_factors(absmax: Array, threshold: float) -> Array:
    """Return max(1, absmax / threshold): float32, shape (channels,)."""
    xp = array_namespace(absmax)
    if threshold <= 0:
        return xp.ones_like(absmax)
    return usable(xp.maximum(absmax / threshold, xp.ones_like(absmax)))


def channel_shift(low: Array, high: Array) -> Array:
    """Return z = (low + high) / 2 of each channel: x - z is then centred.

    Outlier Suppression+, eq. 3.
    """
    return (low + high) / 2
