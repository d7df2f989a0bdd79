"""What can be carried out on a device, established by running the kernels."""

from __future__ import annotations

from functools import cache

import torch

from octavo.core.capability import Capability, Offer
from octavo.core.graph import Op
from octavo.core.scheme import OpScheme, QuantSpec

from . import kernels

_CHANNEL = QuantSpec(dtype="int8", granularity="channel")
_TENSOR = QuantSpec(dtype="int8")
_UNSIGNED = QuantSpec(dtype="uint8", symmetric=False)
_SIGNED = QuantSpec(dtype="int8")
_TOKEN = QuantSpec(dtype="int8", granularity="token")


@cache
def capability(device: str, training: bool = True) -> Capability:
    """Return the schemes that run on ``device``, fastest and smallest first."""
    offers: dict[str, tuple[Offer, ...]] = {}
    if device == "cpu":
        int8 = [
            Offer(OpScheme(mode=mode, weight=weight, input=source), when=_fits)
            for mode in ("static", "dynamic")
            for weight in (_CHANNEL, _TENSOR)
            for source in (_UNSIGNED, _SIGNED)
        ]
        tokens = [Offer(OpScheme(mode="dynamic", weight=weight, input=_TOKEN), when=_fits) for weight in (_CHANNEL, _TENSOR)]
        offers["linear"] = (*int8[:4], *tokens[:1], *int8[4:], *tokens[1:])
        offers["conv"] = tuple(int8)
    features = frozenset({"rescale", "export:onnx"})
    return Capability("torch", device, offers, features, {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()})


def _fits(op: Op) -> str:
    """Return why the integer kernels cannot take an op; empty if they can."""
    assert op.weight is not None
    if op.type == "linear":
        return kernels.has_linear()
    return kernels.has_conv(len(op.weight.shape) - 2)
