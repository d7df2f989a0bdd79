"""Whether a kernel works on this machine: it is run once, on numbers whose result is known."""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensor = torch.Tensor


def fault(
    kernel: str, share: float, run: Callable[[torch.Generator], tuple[Tensor, Tensor]]
) -> str:
    """Return why a kernel cannot be used here; empty when it ran and was within ``share`` of the largest expected number.

    ``run`` returns (what the kernel gives, the same in float64). A kernel that this build of torch or this processor lacks raises.
    """
    try:
        y, expected = run(torch.Generator().manual_seed(0))
    except (RuntimeError, AttributeError, NotImplementedError, ValueError, TypeError) as error:
        return f"{kernel}: {(str(error) or type(error).__name__).splitlines()[0]}"
    right = bool((y.double() - expected).abs().max() <= share * expected.abs().max())
    return "" if right else f"{kernel}: its result is wrong on this machine"


def seven_bit_weight(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    """Return codes of a weight, int8, and a scale of each output, for a run of :func:`fault`."""
    # Seven bits: whether whole bytes are summed without saturating is asked by itself, see saturation.py.
    codes = torch.randint(-63, 64, shape, dtype=torch.int8, generator=generator)
    return codes, torch.rand(shape[0], generator=generator) * 1e-3 + 1e-4
