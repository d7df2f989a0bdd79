"""Whether a kernel works on this machine: it is run once, on numbers whose result is known."""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
Run = Callable[[torch.Generator], Pair]
"""Returns what a kernel gives for drawn numbers, and the same in float64."""

_RAISED = (
    RuntimeError,
    AttributeError,
    NotImplementedError,
    ValueError,
    TypeError,
)
"""What torch raises for a kernel that it lacks or that refuses its arguments."""


def fault(kernel: str, share: float, run: Run) -> str:
    """Return why a kernel cannot be used here; empty when it ran and gave the right numbers.

    Args:
        kernel: Its name, for the reason.
        share: How far from what is expected it may be, as a share of the largest expected number.
        run: Runs it. A kernel that this build of torch or this processor lacks raises.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        y, expected = run(generator)
    except _RAISED as error:
        reason = str(error) or type(error).__name__
        first_line = reason.splitlines()[0]
        return f"{kernel}: {first_line}"
    farthest = (y.double() - expected).abs().max()
    largest = expected.abs().max()
    # In this form a result that is NaN is wrong.
    if farthest <= share * largest:
        return ""
    return f"{kernel}: its result is wrong on this machine"


def drawn_inputs(generator: torch.Generator, *shape: int) -> Tensor:
    """Return codes of an activation, uint8, for a run of :func:`fault`."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def seven_bit_weight(generator: torch.Generator, *shape: int) -> Pair:
    """Return codes of a weight, int8, and a scale of each output, for a run of :func:`fault`."""
    # Seven bits: whether whole bytes are summed without saturating is asked by itself, see
    # saturation.py.
    codes = torch.randint(-63, 64, shape, dtype=torch.int8, generator=generator)
    drawn = torch.rand(shape[0], generator=generator)
    return codes, drawn * 1e-3 + 1e-4


def exact_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Return x W^T in float64, for codes (outputs, inputs) with a scale of each output."""
    weight = codes.double() * scale[:, None]
    return x.double() @ weight.T


def int4_fault(
    kernel: str,
    pack: Callable[[Tensor, Tensor, Tensor], Pair],
    product: Callable[[Tensor, Tensor, int, Tensor], Tensor],
    device: torch.device,
) -> str:
    """Return why a product by weights of 4 bits cannot be used on a device.

    Empty when it was right.

    Args:
        kernel: Its name.
        pack: Lays codes (outputs, inputs), scales and zeros (outputs, groups) out for it.
        product: Takes rows, the packed codes, the size of a group, and the packed scales.
        device: Where to run it.
    """

    def run(generator: torch.Generator) -> Pair:
        x = torch.randn(3, 64, generator=generator)
        codes = torch.randint(0, 16, (32, 64), dtype=torch.int32, generator=generator)
        scale = torch.rand(32, 2, generator=generator) + 0.5
        own_scale = scale.to(device)
        packed, scales = pack(codes.to(device), own_scale, -own_scale)
        y = product(x.to(device), packed, 32, scales)
        # The kernels compute (code - 8) * scale + zero.
        step = scale[..., None]
        centred = codes.double() - 8
        in_groups = centred.view(32, 2, 32) * step - step
        weight = in_groups.view(32, 64)
        return y.cpu(), x.double() @ weight.T

    return fault(kernel, 0.02, run)
