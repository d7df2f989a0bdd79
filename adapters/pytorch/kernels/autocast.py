"""What a layer's result is under ``torch.autocast``.

It changes the results of the float layers that quantized ones stand for.
"""

from __future__ import annotations

import torch


def result_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype that a linear layer or convolution of ``dtype`` gives at this moment.

    Autocast leaves float64 alone (torch.amp, "Autocast Op Reference").
    """
    if dtype == torch.float64 or not torch.is_autocast_enabled(device.type):
        return dtype
    return torch.get_autocast_dtype(device.type)
