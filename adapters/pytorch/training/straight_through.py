"""Quantizing a weight so that gradients pass.

The shared ground of block reconstruction and quantization-aware training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from octavo.core.numerics.affine import QuantParams, integer_range
from octavo.core.numerics.scales import rounded_scale
from octavo.core.values.scheme import QuantSpec

Tensor = torch.Tensor


class RoundToGrid(torch.autograd.Function):
    """w_q = s (clip(round(w / s + v) + z, qmin, qmax) - z) with straight-through gradients.

    dw_q/dw = dw_q/dv / s = 1 inside the range and 0 outside; dw_q/ds = q - z - w / s inside and q
    - z outside (Esser et al. 2020, "Learned Step Size Quantization", eq. 3, with a zero point);
    dw_q/dz = 0 inside and -s outside, where the code stays and the zero moves (Bhalgat et al. 2020,
    "LSQ+", whose offset is -s z).
    """

    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        v: Tensor | None,
        scale: Tensor,
        zero: Tensor,
        low: int,
        high: int,
    ) -> Tensor:
        """Return the grid's values.

        Args:
            ctx: Of autograd.
            w: Values, any shape.
            v: Offsets in units of the scale, like ``w``; None for none.
            scale: Positive; broadcasts against ``w``.
            zero: Zero point, broadcasts likewise.
            low: Smallest code.
            high: Largest code.
        """
        ratio = w / scale
        raw = torch.round(ratio if v is None else ratio + v).add_(zero)
        units = raw.clamp(low, high).sub_(zero)
        inside = (raw >= low) & (raw <= high)
        ctx.save_for_backward(ratio, units, inside, scale)
        return units * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of values, offsets, scale and zero point."""
        ratio, units, inside, scale = ctx.saved_tensors
        passed = grad * inside
        to_scale = None
        if ctx.needs_input_grad[2]:
            to_scale = (grad * units - passed * ratio).sum_to_size(scale.shape)
        to_values = passed if ctx.needs_input_grad[0] else None
        to_offsets = passed * scale if ctx.needs_input_grad[1] else None
        to_zero = None
        if ctx.needs_input_grad[3]:
            to_zero = ((passed - grad) * scale).sum_to_size(scale.shape)
        return to_values, to_offsets, to_scale, to_zero, None, None


def round_to_grid(
    w: Tensor, scale: Tensor, zero: Tensor, spec: QuantSpec, v: Tensor | None = None
) -> Tensor:
    """Return ``w`` on the grid of an integer spec; see :class:`RoundToGrid`."""
    low, high = integer_range(spec)
    apply: Callable[..., Tensor] = RoundToGrid.apply
    return apply(w, v, scale, zero, low, high)


def stored_passed(scale: Tensor, spec: QuantSpec) -> Tensor:
    """Return scales as they will be stored, with the gradient of those that are learned.

    Args:
        scale: Positive, in the shape of the scales.
        spec: Says what they are stored as.
    """
    if spec.scale_dtype is None:
        return scale
    learned = scale.detach()
    params = QuantParams(learned, torch.zeros_like(learned), spec)
    stored, _ = rounded_scale(params)
    # The stored number to the last bit: the difference is zero, and has the gradient.
    passed: Tensor = stored.scale + (scale - learned)
    return passed


def nearest_passed(x: Tensor) -> Tensor:
    """Return ``x`` rounded, with the gradient of ``x``."""
    return x + (torch.round(x) - x).detach()
