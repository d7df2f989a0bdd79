"""What can be carried out on a device, established by running the kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import prod

import torch

from octavo.adapters.pytorch.kernels.saturation import saturates
from octavo.adapters.pytorch.qlayers.projected_lstm import missing_projected
from octavo.adapters.pytorch.qlayers.recurrent_kernels import missing_recurrent
from octavo.core.contract.training import TRAINING
from octavo.core.numerics.channels import FEATURES
from octavo.core.values.capability import Capability, Offer
from octavo.core.values.graph import Op
from octavo.core.values.scheme import OpScheme, QuantSpec

from .kernels import accelerators, onednn

_CHANNEL = QuantSpec(dtype="int8", granularity="channel")
_TENSOR = QuantSpec(dtype="int8")
_UNSIGNED = QuantSpec(dtype="uint8", symmetric=False)
_SIGNED = QuantSpec(dtype="int8")
_TOKEN = QuantSpec(dtype="int8", granularity="token")
_FP8_CHANNEL = QuantSpec(dtype="fp8_e4m3fn", granularity="channel")
_FP8_TENSOR = QuantSpec(dtype="fp8_e4m3fn")
_FP8_TOKEN = QuantSpec(dtype="fp8_e4m3fn", granularity="token")


_CASTS = ("bfloat16", "float16")


def _stored(
    dtype: str, granularity: str, *, symmetric: bool = True, scale_dtype: str | None = None
) -> OpScheme:
    return OpScheme(
        mode="weight_only",
        weight=QuantSpec(
            dtype=dtype, granularity=granularity, symmetric=symmetric, scale_dtype=scale_dtype
        ),
    )


_WEIGHT_ONLY = (
    _stored("int8", "channel"),
    _stored("int8", "group:32"),
    _stored("int8", "group:128"),
    *(
        _stored("uint4" if not s else "int4", f"group:{n}", symmetric=s)
        for n in (32, 64, 128)
        for s in (False, True)
    ),
    _stored("int4", "channel"),
    _stored("nf4", "group:64"),
    _stored("nf4", "group:64", scale_dtype="uint8"),
    _stored("fp8_e4m3fn", "channel"),
    _stored("fp8_e5m2", "channel"),
    *(_stored(dtype, "group:32") for dtype in ("mxint8", "mxfp8", "mxfp6", "mxfp4")),
    *(
        _stored(f"{'' if s else 'u'}int{bits}", f"group:{n}", symmetric=s)
        for bits in (3, 2)
        for n in (32, 64, 128)
        for s in (False, True)
    ),
)
"""Formats of stored weights, in the order in which they lose accuracy."""


@cache
def capability(device: str) -> Capability:
    """Return the schemes that run on ``device`` (``cpu``, ``cuda:0``, ...), fastest and smallest first.

    Whether one does is found out by a small product on that very device, when an op first asks.
    """
    kind = torch.device(device).type
    fits, observed = partial(_fits, device), partial(_observed, device)
    narrowed = saturates if kind == "cpu" else None
    int8 = [
        Offer(
            OpScheme(mode=mode, weight=weight, input=source),
            refuses=observed if mode == "static" else fits,
            narrowed=narrowed,
        )
        for mode in ("static", "dynamic")
        for weight in (_CHANNEL, _TENSOR)
        for source in (_UNSIGNED, _SIGNED)
    ]
    few = [  # fewer bits on the 8-bit kernels: smaller files, the same speed
        Offer(
            OpScheme(
                mode="static",
                weight=QuantSpec(dtype=f"int{bits}", granularity=granularity),
                input=_UNSIGNED,
            ),
            refuses=observed,
        )
        for bits in (4, 3)
        for granularity in ("channel", "tensor")
    ]
    rows = [
        Offer(
            OpScheme(mode="dynamic", weight=weight, input=_TOKEN), refuses=fits, narrowed=narrowed
        )
        for weight in (_CHANNEL, _TENSOR)
    ]
    # A CPU has the fp8 product too, and takes longer over it than over float32: nothing is gained but the numbers.
    fp8 = [
        Offer(
            OpScheme(mode="dynamic", weight=weight, input=source),
            "simulated" if kind == "cpu" else "kernel",
            partial(_fp8, device, source == _FP8_TOKEN),
        )
        for weight, source in ((_FP8_CHANNEL, _FP8_TOKEN), (_FP8_TENSOR, _FP8_TENSOR))
    ]
    stored = [
        Offer(scheme, refuses=_groups_fit(scheme.weight.group_size if scheme.weight else None))
        for scheme in _WEIGHT_ONLY
    ]
    casts = [
        Offer(OpScheme(mode="cast", weight=QuantSpec(dtype=dtype)), refuses=_casts)
        for dtype in _CASTS
    ]
    offers = {
        "linear": (*int8[:4], *rows[:1], *int8[4:], *rows[1:], *fp8, *stored, *few, *casts),
        "conv": (*int8, *few, *casts, *stored),
        "conv_transpose": (*int8, *few, *casts),
        "embedding": (*stored, *casts),
        "lstm": (*_recurrent(device, "lstm"), *stored),
        "gru": (*_recurrent(device, "gru"), *stored),
        "rnn": tuple(stored),
    }
    features = frozenset({*FEATURES.values(), *TRAINING, "gradients", "export:onnx"})
    versions = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    if kind == "cuda":
        versions["gpu"] = (
            f"{torch.cuda.get_device_name(device)}, compute capability {torch.cuda.get_device_capability(device)}"
        )
    return Capability("torch", device, offers, features, versions)


def _recurrent(device: str, kind: str) -> tuple[Offer, ...]:
    if device != "cpu":
        return ()
    weights = (_CHANNEL, _TENSOR)

    def lacking(op: Op) -> str:
        return missing_projected() if "proj_size" in op.attributes else missing_recurrent(kind)

    schemes = (OpScheme(mode="dynamic", weight=w, input=_UNSIGNED) for w in weights)
    return tuple(Offer(scheme, refuses=lacking, narrowed=saturates) for scheme in schemes)


def _fits(device: str, op: Op) -> str:
    """Return why a device's integer kernels cannot take an op; empty if they can."""
    assert op.weight is not None
    on_cpu = torch.device(device).type == "cpu"
    if op.type == "linear":
        return onednn.missing_linear() if on_cpu else accelerators.missing_linear(device)
    return (
        onednn.missing_conv(len(op.weight.shape) - 2)
        if on_cpu
        else f"torch has no integer convolution on {device}"
    )


def _observed(device: str, op: Op) -> str:
    """Return why no static range can be had for an op; empty if it can."""
    return (
        "routing decides which tokens an expert meets, perhaps none: use mode dynamic or weight_only"
        if "routed" in op.attributes
        else _fits(device, op)
    )


def _fp8(device: str, per_row: bool, op: Op) -> str:
    """Return why a device's fp8 product cannot take an op; empty if it can."""
    return accelerators.missing_fp8(device, per_row)


def _groups_fit(group: int | None) -> Callable[[Op], str] | None:
    """Return a check that an op's rows are whole groups."""
    if group is None:
        return None

    def check(op: Op) -> str:
        for weight in op.weights:
            if weight.channel_axis >= len(weight.shape):
                return f"its weight has the shape {weight.shape}, without an axis of channels"
            features = prod(weight.shape) // weight.shape[weight.channel_axis]
            if features % group:
                return f"its rows of {features} values are not whole groups of {group}"
        return ""

    return check


def _casts(op: Op) -> str:
    """Return why an op gains nothing from 16 bits; empty if it does."""
    return (
        f"its weight is {op.weight.dtype} already"
        if op.weight is not None and op.weight.dtype in _CASTS
        else ""
    )
