"""Whether a kernel works on this machine: it is run once, on numbers whose result is known."""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
Run = Callable[[torch.Generator], Pair]
"""Returns what a kernel gives for drawn numbers, and the same in float64."""


def fault(kernel: str, share: float, run: Run) -> str:
    """Return why a kernel cannot be used here; empty when it ran and gave the right numbers.

    Args:
        kernel: Its name, for the reason.
        share: How far from what is expected it may be, as a share of the largest expected number.
        run: Runs it. A kernel that this build of torch or this processor lacks raises.
    """
    try:
        y, expected = run(torch.Generator().manual_seed(0))
    except (
        RuntimeError,
        AttributeError,
        NotImplementedError,
        ValueError,
        TypeError,
    ) as error:
        reason = str(error) or type(error).__name__
        return f"{kernel}: {reason.splitlines()[0]}"
    farthest = (y.double() - expected).abs().max()
    is_right = bool(farthest <= share * expected.abs().max())
    return "" if is_right else f"{kernel}: its result is wrong on this machine"


def drawn_inputs(generator: torch.Generator, *shape: int) -> Tensor:
    """Return codes of an activation, uint8, for a run of :func:`fault`."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def seven_bit_weight(generator: torch.Generator, *shape: int) -> Pair:
    """Return codes of a weight, int8, and a scale of each output, for a run of :func:`fault`."""
    # Seven bits: whether whole bytes are summed without saturating is asked by itself, see
    # saturation.py.
    codes = torch.randint(-63, 64, shape, dtype=torch.int8, generator=generator)
    scale = torch.rand(shape[0], generator=generator) * 1e-3 + 1e-4
    return codes, scale


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
        packed, scales = pack(codes.to(device), scale.to(device), -scale.to(device))
        y = product(x.to(device), packed, 32, scales).cpu()
        # The kernels compute (code - 8) * scale + zero.
        step = scale[..., None]
        weight = (codes.double() - 8).view(32, 2, 32) * step - step
        return y, x.double() @ weight.view(32, 64).T

    return fault(kernel, 0.02, run)
