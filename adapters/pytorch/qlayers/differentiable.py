"""Gradients through layers whose kernels have none.

Backward goes through the same layer in float, with its decoded weight. Rounding the input is passed
straight through (Bengio et al. 2013, arXiv:1308.3432); what a static range clips gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from octavo.adapters.pytorch.kernels.activation import Activation

Tensor = torch.Tensor


Compute = Callable[..., Tensor]


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Return whether a gradient may be asked for with respect to one of the tensors.

    A compiled program gives none.
    """
    if not torch.is_grad_enabled():
        return False
    wanted = any(t is not None and t.requires_grad for t in tensors)
    return wanted and not torch.compiler.is_compiling()


def differentiable(on_kernel: Compute, in_float: Compute, *tensors: Tensor) -> Tensor:
    """Return what a kernel computes, with the gradient of the same in float.

    Args:
        on_kernel: What computes the result; it gives float values.
        in_float: About the same in operations that have gradients.
        tensors: What both are given.
    """
    through: Any = _ThroughKernel
    result: Tensor = through.apply(on_kernel, in_float, *tensors)
    return result


class _ThroughKernel(torch.autograd.Function):
    """Computes on the kernel; backward computes the float form again.

    So the graph holds no float weight.
    """

    @staticmethod
    def forward(
        ctx: Any, on_kernel: Compute, in_float: Compute, *tensors: Tensor
    ) -> Tensor:
        ctx.in_float = in_float
        ctx.save_for_backward(*tensors)
        values = [t.detach() for t in tensors]
        return on_kernel(*values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given: list[Tensor] = []
        wanted: list[Tensor] = []
        for saved in ctx.saved_tensors:
            tensor = saved.detach()
            given.append(tensor)
            # Codes are given as well, and have no gradient.
            if tensor.is_floating_point():
                wanted.append(tensor.requires_grad_())
        with torch.enable_grad():
            y = ctx.in_float(*given)
        towards = grad.to(y.dtype)
        gradients = torch.autograd.grad(y, wanted, towards)
        found = iter(gradients)
        by_tensor = [next(found) if t.requires_grad else None for t in given]
        # The two functions have none.
        return (None, None, *by_tensor)


def clipped(x: Tensor, source: Activation | None) -> Tensor:
    """Return values within a static range, whose gradient is 0 outside of it."""
    if source is None:
        return x
    steps_down = source.low - source.zero_point
    steps_up = source.high - source.zero_point
    low = steps_down * source.scale
    high = steps_up * source.scale
    return x.clamp(low, high)


def as_values(result: Tensor, gives: Activation | None, dtype: torch.dtype) -> Tensor:
    """Return a kernel's result as float values: codes, if it gives them, have no gradient."""
    if gives is None or result.dtype != torch.uint8:
        return result
    steps = result.float() - gives.zero_point
    return (steps * gives.scale).to(dtype)
