"""A captured model with a recipe's ops quantized."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.graph.traced import GraphCapture
from octavo.adapters.pytorch.capture.module_tree import ModuleCapture
from octavo.core.contract.adapter import OpParameters

from .traced_rewrite import rewrite
from .tree_rewrite import rewrite_tree


def quantized_model(
    capture: Capture,
    parameters: Mapping[str, OpParameters],
    biases: Mapping[str, torch.Tensor | None],
) -> nn.Module:
    """Return a runnable module with the given ops quantized; all else shares the capture's tensors.

    Args:
        capture: The float model; not changed.
        parameters: Op name -> what the core decided.
        biases: Op name -> bias as the op uses it (batch norm folded, corrected), or None.
    """
    if isinstance(capture, GraphCapture):
        return rewrite(capture, parameters, biases)
    assert isinstance(capture, ModuleCapture)
    return rewrite_tree(capture, parameters, biases)
