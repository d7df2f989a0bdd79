"""Weights as ops use them, beside the ones that the model stores before a batch norm is folded."""

from __future__ import annotations

import torch

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.folding import channel_gain, over_weight

Tensor = torch.Tensor


def folded_gain(capture: Capture, name: str) -> Tensor | None:
    """Return what a folded batch norm multiplies a weight with, one factor for each output channel.

    None where there is no norm.
    """
    for layer in capture.layers.values():
        if layer.norm and name == f"{layer.path}.weight":
            norm = capture.root.get_submodule(layer.norm)
            module = capture.root.get_submodule(layer.path)
            gain = channel_gain(norm)
            # A channel that the norm silences has no weight as the op uses it.
            finite = torch.where(gain == 0, torch.inf, gain)
            return over_weight(finite, module)
    return None
