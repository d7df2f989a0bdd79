"""The step that makes codes of a value once, for all layers that read it."""

from __future__ import annotations

import torch
from torch import nn

from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.kernels.operators import is_portable

from .differentiable import needs_gradient

Tensor = torch.Tensor


class Quantize(nn.Module):
    """Float values -> uint8 codes; shared by all layers that read one value alike.

    Args:
        activation: The codes' parameters.

    Attributes:
        few: So few elements are passed on as they are: all readers quantize and multiply them in
            one kernel.
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.few = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes of ``x``, or ``x``."""
        if needs_gradient(x):
            return x  # its readers quantize it alike, each with a gradient
        portable = torch.compiler.is_compiling() and is_portable()
        if (
            not portable
            and x.numel() <= self.few
            and x.dtype == torch.float32
            and x.device.type == "cpu"
        ):
            return x
        return self.activation.quantize(x)
