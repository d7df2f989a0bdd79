"""A linear layer that learns as AutoRound has it: by the signs of gradients.

Cheng et al. 2024, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of
LLMs", eqs. 3 to 6.
"""

from __future__ import annotations

import torch
from torch import nn

from octavo.core.numerics.affine import SMALLEST_SCALE, integer_range

from .learned_linear import GridLinear
from .straight_through import nearest_passed

Tensor = torch.Tensor
_LEAST_SHARE = 0.01
"""Of a range: over one of no width nothing could be divided."""


class SignedLinear(GridLinear):
    """Learns V, added before rounding, and the shares of both ends of the range.

    W_q = s (clip(round(W / s + V) + z, qmin, qmax) - z), V in [-1/2, 1/2], with
    s = (high share * high - low share * low) / (qmax - qmin) and
    z = round(qmin - low share * low / s) (eqs. 3 and 4). The ends are those of the grid that is
    started from, the shares start at 1 and end at what brings a shrunk range back to the weight's
    own. A symmetric grid has one share, and its zero point stays.

    Where the start's algorithm rounded otherwise than to nearest, the weight that is rounded is
    moved to its code: V starts at 0 in any case.
    """

    def begin(self) -> None:
        """Make V and the shares, over the ends of the start's grid."""
        scale, zero = self.start_scale, self.start_zero
        qmin, qmax = integer_range(self.spec)
        self.low = scale * (qmin - zero)
        self.high = scale * (qmax - zero)
        self.largest_share = self._largest_share()
        self.weight = self._moved()
        self.offset = nn.Parameter(torch.zeros_like(self.weight))
        frozen = not self.learns_range
        self.low_share = nn.Parameter(torch.ones_like(scale), requires_grad=not frozen)
        self.high_share = nn.Parameter(torch.ones_like(scale), requires_grad=not frozen)

    def _moved(self) -> Tensor:
        """Return the weight, moved to where the start's algorithm rounded it.

        What lies beyond the range stays there.
        """
        qmin, qmax = integer_range(self.spec)
        scale, zero = self.over(self.start_scale), self.over(self.start_zero)
        nearest = torch.round(self.weight / scale).clamp(qmin - zero, qmax - zero)
        is_moved = nearest != self.centre
        return torch.where(is_moved, self.nearby() * scale, self.weight)

    def _largest_share(self) -> Tensor:
        """Return what each range may grow by: to the largest of its weights, else not at all."""
        scale, zero = self.over(self.start_scale), self.over(self.start_zero)
        qmin, qmax = integer_range(self.spec)
        low, high = scale * (qmin - zero), scale * (qmax - zero)
        # An end at zero has no share.
        below = torch.where(low < 0, self.weight / low, 0.0)
        above = torch.where(high > 0, self.weight / high, 0.0)
        beyond = torch.maximum(below, above)
        return self._largest_of_each_scale(beyond).clamp(min=1.0)

    def _largest_of_each_scale(self, x: Tensor) -> Tensor:
        """Return the largest of the elements that share a scale, in the scales' shape."""
        shape = self.start_scale.shape
        if self._has_whole_groups:
            return x.amax(-1)
        places = torch.arange(self.start_scale.numel(), device=x.device).view(shape)
        index = self.over(places).expand(x.shape).reshape(-1)
        found = x.new_zeros(self.start_scale.numel())
        return found.scatter_reduce(0, index, x.reshape(-1), "amax").view(shape)

    def learned_grid(self) -> tuple[Tensor, Tensor]:
        """Return (scale, zero point) over the shares of the range."""
        if not self.learns_range:
            return self.start_scale, self.start_zero
        if self.spec.symmetric:
            scale = self.start_scale * self.high_share
            return scale.clamp(min=SMALLEST_SCALE), self.start_zero
        qmin, qmax = integer_range(self.spec)
        low = self.low * self.low_share
        scale = (self.high * self.high_share - low) / (qmax - qmin)
        scale = scale.clamp(min=SMALLEST_SCALE)
        zero = nearest_passed(qmin - low / scale).clamp(qmin, qmax)
        return scale, zero

    def rounded(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight and V."""
        return self.weight, self.offset

    @torch.no_grad()
    def step(self, rate: float, range_rate: float) -> None:
        """Move everything by its rate, against the sign of its gradient (eq. 6)."""
        _descend(self.offset, rate, -0.5, 0.5)
        for share in (self.low_share, self.high_share):
            _descend(share, range_rate, _LEAST_SHARE, self.largest_share)


def _descend(
    parameter: nn.Parameter, rate: float, low: float, high: float | Tensor
) -> None:
    if parameter.grad is None:
        return
    parameter.sub_(rate * parameter.grad.sign())
    parameter.clamp_(min=low)
    top = torch.as_tensor(high, device=parameter.device)
    parameter.copy_(torch.minimum(parameter, top))
    parameter.grad = None
