"""Gradients through layers whose kernels have none: backward goes through the same layer in float, with its decoded weight.

Rounding the input is passed straight through (Bengio et al. 2013, arXiv:1308.3432); what a static range clips gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from octavo.adapters.pytorch.kernels.activation import Activation

Tensor = torch.Tensor


Compute = Callable[..., Tensor]


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Return whether a gradient may be asked for with respect to one of the tensors; a compiled program gives none."""
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return wanted and not torch.compiler.is_compiling()


def differentiable(on_kernel: Compute, in_float: Compute, *tensors: Tensor) -> Tensor:
    """Return what a kernel computes, with the gradient of the same in float.

    Args:
        on_kernel: What computes the result; it gives float values.
        in_float: About the same in operations that have gradients.
        tensors: What both are given.
    """
    result: Tensor = _ThroughKernel.apply(on_kernel, in_float, *tensors)  # type: ignore[no-untyped-call]
    return result


class _ThroughKernel(torch.autograd.Function):
    """Computes on the kernel; backward computes the float form again, so that the graph holds no float weight."""

    @staticmethod
    def forward(ctx: Any, on_kernel: Compute, in_float: Compute, *tensors: Tensor) -> Tensor:
        ctx.in_float = in_float
        ctx.save_for_backward(*tensors)
        return on_kernel(*(t.detach() for t in tensors))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            given = [t.detach().requires_grad_(t.is_floating_point()) for t in ctx.saved_tensors]
            y = ctx.in_float(*given)
        wanted = [t for t in given if t.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, grad.to(y.dtype)))
        return (None, None, *(next(found) if t.requires_grad else None for t in given))


def clipped(x: Tensor, source: Activation | None) -> Tensor:
    """Return values within a static range, whose gradient is 0 outside of it."""
    if source is None:
        return x
    low, high = ((code - source.zero_point) * source.scale for code in (source.low, source.high))
    return x.clamp(low, high)


def as_values(result: Tensor, gives: Activation | None, dtype: torch.dtype) -> Tensor:
    """Return a kernel's result as float values, also where it gives codes: codes have no gradient."""
    if gives is None or result.dtype != torch.uint8:
        return result
    return ((result.float() - gives.zero_point) * gives.scale).to(dtype)
