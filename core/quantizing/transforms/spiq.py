"""SPIQ: one input scale per channel, folded into the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import NeedsConfig
from octavo.core.contract.transform import Observed
from octavo.core.numerics.affine import Array
from octavo.core.values.graph import Group, ModelView, Op

from .base import Link, Rescaling, links, usable
from .norms import UNKNOWN, absmax_from_norm, gain_and_shift


class SpiqConfig(NeedsConfig):
    """Settings of SPIQ.

    Attributes:
        source: ``calibration`` takes the ranges that were seen; ``norm`` derives them from the
            parameters of the norm before, without data, where there is one, and leaves other groups
            alone.
        deviations: How many standard deviations a range reaches, for ``norm``.
    """

    kind: Literal["spiq"] = "spiq"
    source: Literal["calibration", "norm"] = "calibration"
    deviations: float = Field(6.0, gt=0)

    def needs(self, card: frozenset[str]) -> frozenset[str]:
        """The norm's parameters take the place of ranges."""
        return card if self.source == "calibration" else frozenset()


class Spiq(Rescaling):
    """f_j = s_j / mean(s), with s_j the largest absolute input of channel j.

    Each channel then fills the one shared range.

    Paper: Yvinec et al. 2022, "SPIQ: Data-Free Per-Channel Static Input Quantization", eqs. 4 to 6.
    Per-channel input scales
    cannot be factored out of an integer product, so the weights take them: W_q quantizes W diag(s).
    Dividing by the geometric mean keeps the weights' magnitude and changes nothing else.

    Needs channel ranges, or with ``source = "norm"`` no data. Cost: one pass over the ranges.
    """

    config: SpiqConfig

    def passes_over(self, group: Group) -> str:
        """Return why the parameters of a norm cannot be had."""
        from_norm = self.config.source == "norm"
        return UNKNOWN if from_norm and not group.gain else ""

    def factors(
        self,
        view: ModelView,
        tensor: Callable[[str], Array],
        statistics: Observed,
        recipe_ops: Mapping[str, Op],
    ) -> Mapping[str, Array]:
        """Return group name -> factors."""
        found: dict[str, Array] = {}
        for link in links(view, tensor, statistics, recipe_ops):
            scales = self._scales(link)
            if scales is not None:
                found[link.group.name] = conversion_scales(scales)
        return found

    def _scales(self, link: Link) -> Array | None:
        if self.config.source == "calibration":
            return link.input_absmax()
        known = gain_and_shift(link)
        if known is None:
            return None
        rectified = link.group.rectified
        return absmax_from_norm(*known, self.config.deviations, rectified=rectified)


def conversion_scales(absmax: Array) -> Array:
    """Return factors proportional to the ranges, with geometric mean 1.

    Channels that never fired get 1.
    """
    xp = array_namespace(absmax)
    one = xp.ones_like(absmax)
    alive = absmax > 0
    # The logarithm of one, zero, stands for channels that never fired.
    logs = xp.log(xp.where(alive, absmax, one))
    count = int(xp.sum(xp.astype(alive, xp.int32)))
    mean = xp.sum(logs) / max(1, count)
    return usable(xp.where(alive, xp.exp(logs - mean), one))
