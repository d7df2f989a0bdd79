"""Linear layers that learn their scales, on codes that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.affine import SMALLEST_SCALE, integer_range
from octavo.core.numerics.scales import has_movable_scales, rounded_scale
from octavo.core.numerics.tensor import QuantizedTensor

from .learned_linear import GridLinear

Tensor = torch.Tensor


class ScaledLinear(GridLinear):
    """Learns scales alone: its codes stay where its start's algorithm put them.

    Chen et al. 2024, "EfficientQAT", section 3.3 (end-to-end training of quantization parameters):
    w_q = s (q - z) with q and z fixed, so that dL/ds is the sum of (q - z) dL/dw_q over a scale's
    weights. Codes that were chosen together (GPTQ) lie far from the nearest ones: if each scale
    that moves rounded anew, many would turn over at once, and with them what the algorithm won.
    """

    def begin(self) -> None:
        """Make the scales."""
        self.scale = nn.Parameter(self.start_scale.clone())

    @property
    def steps(self) -> int:
        """Steps of its grid from one end to the other."""
        low, high = integer_range(self.spec)
        return high - low

    def learned_grid(self) -> tuple[Tensor, Tensor]:
        """Return the learned scale, and the start's zero point."""
        return self.scale, self.start_zero

    def rounded(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight on the start's grid, and no offset."""
        return self.centre * self.over(self.start_scale), None

    def quantized_weight(self) -> Tensor:
        """Return the start's codes on the learned scales, with its repair, (outputs, inputs)."""
        scale, _ = self.grid()
        weight = (self.centre * self.over(scale)).reshape(self.shape)
        return weight if self.repair is None else weight + self.repair

    @torch.no_grad()
    def result(self, start: QuantizedTensor) -> QuantizedTensor:
        """Return the start's codes with the learned scales as they are stored."""
        # A scale below zero would turn its weights over, and no format stores one.
        scale = self.scale.clamp(min=SMALLEST_SCALE)
        params, extra = rounded_scale(replace(start.params, scale=scale))
        return QuantizedTensor(start.codes, params, extra, start.repair)


def with_movable_scales(
    parameters: Mapping[str, OpParameters],
) -> dict[str, OpParameters]:
    """Return the parameters of weights whose scales may move, each for itself."""
    return {
        name: own
        for name, own in parameters.items()
        if own.weight is not None and has_movable_scales(own.weight.params.spec)
    }
