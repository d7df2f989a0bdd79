"""QuaRot's rotation: outliers spread over all channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.transform import Observed
from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import ChannelMap, Factors
from octavo.core.values.graph import ModelView, Op

from .base import Rescaling, links


class HadamardConfig(PartConfig):
    """Settings of the Hadamard rotation.

    Attributes:
        seed: Of the random signs.
        online: Also rotate where nothing can take the rotation in, as a step before the product: n
            log n to n**1.5 additions a row of n channels. False rotates only what costs nothing at
            run time.
    """

    kind: Literal["hadamard"] = "hadamard"
    seed: int = Field(0, ge=0)
    online: bool = True


class Hadamard(Rescaling):
    """x' = x Q, W' = W Q with a randomised Hadamard matrix Q.

    Every channel of x' mixes all of x, so that no channel stands out.

    Paper: Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", section 3:
    the rotation of a linear op's input, taken in by the linear op that writes it where nothing lies
    between, and else carried out online (section 4, stage 1b to 1d). The residual stream is not
    rotated. Channels that are no power of two are rotated by a Hadamard matrix times a cosine
    basis.

    Needs nothing but, for static activations, a second pass over the rotated values. Cost: n log n
    a row of weights.
    """

    config: HadamardConfig

    @property
    def carries(self) -> frozenset[str]:
        """Rotations alone."""
        return frozenset({"rotation"})

    def factors(
        self,
        view: ModelView,
        tensor: Callable[[str], Array],
        statistics: Observed,
        recipe_ops: Mapping[str, Op],
    ) -> Mapping[str, Factors]:
        """Return group name -> rotation."""
        found: dict[str, Factors] = {}
        for link in links(view, tensor, statistics, recipe_ops, "rotation"):
            is_free = "rotation" not in link.group.online
            if is_free or self.config.online:
                found[link.group.name] = ChannelMap(rotation=self.config.seed)
        return found
