"""Whether a model may stay where it is while its modules compute on another device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.graph.traced import GraphCapture
from octavo.adapters.pytorch.run.batches import Call
from octavo.adapters.pytorch.run.device_offload import Lender

from .float_runs import watch_for


def why_not_lent(capture: Capture, example: Call | None, device: torch.device) -> str:
    """Return why a model must be moved as a whole.

    Empty if its modules run one by one on ``device``.

    Args:
        capture: The model where it is.
        example: One batch, where the model is.
        device: Where to compute.
    """
    if isinstance(capture, GraphCapture):
        return "it runs as one graph"
    if example is None:
        return (
            "without an example there is no telling whether its modules run one by one"
        )

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    watch = watch_for(capture.lent_by(Lender(device)), (), lambda _, __: None)
    try:
        with torch.no_grad():
            watch(tree_map(moved, example))
    except Exception as error:
        # A module that reads another's tensors meets them on the wrong device.
        said = (str(error) or type(error).__name__).splitlines()[0]
        return f"its modules do not run one by one ({said})"
    return ""
