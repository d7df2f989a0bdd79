"""What can be carried out on a device, established by running the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from math import prod

import torch

from octavo.adapters.pytorch.kernels.saturation import saturates
from octavo.adapters.pytorch.qlayers.projected_lstm import missing_projected
from octavo.adapters.pytorch.qlayers.recurrent_kernels import missing_recurrent
from octavo.core.contract.revision import REVISION
from octavo.core.contract.training import TRAINING
from octavo.core.numerics.affine import is_integer
from octavo.core.numerics.channels import RESCALE_FEATURES
from octavo.core.values.capability import (
    LOW_RANK_REPAIR,
    Capability,
    Offer,
    Realization,
)
from octavo.core.values.graph import Op
from octavo.core.values.scheme import Mode, OpScheme, QuantSpec

from .kernels import accelerators, onednn

_CHANNEL = QuantSpec(dtype="int8", granularity="channel")
_TENSOR = QuantSpec(dtype="int8")
_UNSIGNED = QuantSpec(dtype="uint8", symmetric=False)
_SIGNED = QuantSpec(dtype="int8")
_TOKEN = QuantSpec(dtype="int8", granularity="token")
_NARROW = (
    QuantSpec(dtype="uint4", symmetric=False),
    QuantSpec(dtype="int4"),
)
_NARROW_TOKEN = QuantSpec(dtype="int4", granularity="token")
_WIDE = (QuantSpec(dtype="uint16", symmetric=False), QuantSpec(dtype="int16"))
_FP8_CHANNEL = QuantSpec(dtype="fp8_e4m3fn", granularity="channel")
_FP8_TENSOR = QuantSpec(dtype="fp8_e4m3fn")
_FP8_TOKEN = QuantSpec(dtype="fp8_e4m3fn", granularity="token")
_CASTS = ("bfloat16", "float16")

Refusal = Callable[[Op], str]
"""Returns why an op cannot take a scheme; empty if it can."""
Narrowing = Callable[[], str]
"""Returns why a weight has a reduced range on this device; empty if it keeps the whole one."""


def _stored(
    dtype: str,
    granularity: str,
    *,
    symmetric: bool = True,
    scale_dtype: str | None = None,
) -> OpScheme:
    weight = QuantSpec(
        dtype=dtype,
        granularity=granularity,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
    )
    return OpScheme(mode="weight_only", weight=weight)


def _in_groups(dtype: str, size: int) -> OpScheme:
    return _stored(
        dtype,
        f"group:{size}",
        symmetric=not dtype.startswith("u"),
        scale_dtype=_OF_GROUPS,
    )


def _grouped(bits: int) -> Iterator[OpScheme]:
    """Yield integers in groups, from small groups to large ones, those with a zero point first."""
    for size in (32, 64, 128):
        yield _in_groups(f"uint{bits}", size)
        yield _in_groups(f"int{bits}", size)


_OF_GROUPS = "uint8"
"""Scales of integers in groups. Over a second level they take 0.26 bits a weight at groups of 32,
where float16 takes 0.5 and float32 1. On a small Llama (42 layers, groups of 32, round to nearest)
the divergence from float, times 1000, with scales in float32, float16 and uint8 was 18.20, 18.17
and 18.08 at 2 bits, 3.37, 3.36 and 3.38 at 3, 0.71, 0.72 and 0.70 at 4: nothing is lost."""

_WEIGHT_ONLY = (
    _stored("int8", "channel"),
    _in_groups("int8", 32),
    _in_groups("int8", 128),
    *_grouped(4),
    _stored("int4", "channel"),
    _stored("nf4", "group:64"),
    _stored("nf4", "group:64", scale_dtype="uint8"),
    _stored("fp8_e4m3fn", "channel"),
    _stored("fp8_e5m2", "channel"),
    *(_stored(dtype, "group:32") for dtype in ("mxint8", "mxfp8", "mxfp6", "mxfp4")),
    *_grouped(3),
    *_grouped(2),
)
"""Formats of stored weights, in the order in which they lose accuracy."""

_SCALES = (None, "float16", "bfloat16", "uint8")
"""Formats of scales that layers with stored weights read, where these are integers or nf4: they
hold all of them in float32, which they make once, when a model is built or loaded."""


@cache
def capability(device: str) -> Capability:
    """Return the schemes that run on ``device`` (``cpu``, ``cuda:0``, ...), fastest and smallest
    first.

    Whether one does is found out by a small product on that very device, when an op first asks.
    """
    on_cpu = torch.device(device).type == "cpu"
    narrowed = saturates if on_cpu else None
    static = list(_int8("static", partial(_observed, device), narrowed))
    dynamic = list(_int8("dynamic", partial(_fits, device), narrowed))
    by_channel, by_tensor = _rows(partial(_fits, device), narrowed)
    int8 = (*static, *dynamic)
    few = tuple(_few_bits(device))
    rounded = tuple(_simulated())
    stored = [
        Offer(
            scheme,
            refuses=_groups_fit(_group_size(scheme)),
            scales=_scales_read(scheme.weight),
        )
        for scheme in _WEIGHT_ONLY
    ]
    casts = []
    for dtype in _CASTS:
        scheme = OpScheme(mode="cast", weight=QuantSpec(dtype=dtype))
        casts.append(Offer(scheme, refuses=_casts))
    products = (*static, by_channel, *dynamic, by_tensor)
    offers = {
        "linear": (
            *_repaired(products),
            *_fp8_products(device),
            *_repaired((*stored, *few)),
            *casts,
            *_repaired(rounded),
        ),
        "conv": (*int8, *few, *casts, *stored, *rounded),
        "conv_transpose": (*int8, *few, *casts),
        "embedding": (*_repaired(stored), *casts),
        "lstm": (*_recurrent(device, "lstm"), *stored),
        "gru": (*_recurrent(device, "gru"), *stored),
        "rnn": tuple(stored),
    }
    features = frozenset(
        {
            *RESCALE_FEATURES.values(),
            *TRAINING,
            "gradients",
            "gradients:metric",
            REVISION,
            "export:onnx",
            LOW_RANK_REPAIR,
        }
    )
    return Capability("torch", device, offers, features, _versions(device))


def _scales_read(weight: QuantSpec | None) -> tuple[str | None, ...]:
    """Return the formats of a stored weight's scales."""
    if weight is None or not (is_integer(weight) or weight.dtype == "nf4"):
        return ()
    return _SCALES


def _repaired(offers: Iterable[Offer]) -> Iterator[Offer]:
    """Yield offers that take a low-rank repair too: a linear layer multiplies by it in float, and a
    table adds that of the rows it looks up."""
    return (replace(offer, repairs=True) for offer in offers)


def _versions(device: str) -> dict[str, str]:
    versions = {
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.device(device).type == "cuda":
        name, level = (
            torch.cuda.get_device_name(device),
            torch.cuda.get_device_capability(device),
        )
        versions["gpu"] = f"{name}, compute capability {level}"
    return versions


def _int8(mode: Mode, refuses: Refusal, narrowed: Narrowing | None) -> Iterator[Offer]:
    """Yield products of 8-bit weights and inputs of one scale, by channel first."""
    for weight in (_CHANNEL, _TENSOR):
        for source in (_UNSIGNED, _SIGNED):
            scheme = OpScheme(mode=mode, weight=weight, input=source)
            yield Offer(scheme, refuses=refuses, narrowed=narrowed)


def _rows(refuses: Refusal, narrowed: Narrowing | None) -> tuple[Offer, Offer]:
    """Return products whose inputs have a scale for each row."""
    by_channel = OpScheme(mode="dynamic", weight=_CHANNEL, input=_TOKEN)
    by_tensor = OpScheme(mode="dynamic", weight=_TENSOR, input=_TOKEN)
    return (
        Offer(by_channel, refuses=refuses, narrowed=narrowed),
        Offer(by_tensor, refuses=refuses, narrowed=narrowed),
    )


def _few_bits(device: str) -> Iterator[Offer]:
    """Yield fewer bits on the 8-bit kernels: smaller files, the same speed."""
    for bits in (4, 3):
        for granularity in ("channel", "tensor"):
            weight = QuantSpec(dtype=f"int{bits}", granularity=granularity)
            scheme = OpScheme(mode="static", weight=weight, input=_UNSIGNED)
            yield Offer(scheme, refuses=partial(_observed, device))
    # W4A8 without calibration: a scale for each row of a linear layer's input, one for a
    # convolution's.
    four = QuantSpec(dtype="int4", granularity="channel")
    by_row = OpScheme(mode="dynamic", weight=four, input=_TOKEN)
    yield Offer(by_row, refuses=lambda op: _without_rows(op) or _fits(device, op))
    at_once = OpScheme(mode="dynamic", weight=four, input=_UNSIGNED)
    yield Offer(at_once, refuses=lambda op: _with_rows(op) or _fits(device, op))


def _without_rows(op: Op) -> str:
    return "" if op.type == "linear" else f"the input of a {op.type} has no rows"


def _with_rows(op: Op) -> str:
    is_linear = op.type == "linear"
    return "the rows of its input have a scale each (token)" if is_linear else ""


def _simulated() -> Iterator[Offer]:
    """Yield inputs of another width than the 8-bit kernels take: rounded, multiplied in float."""
    for bits in (8, 4, 3, 2):
        weight = QuantSpec(dtype=f"int{bits}", granularity="channel")
        for source in _NARROW if bits < 8 else (*_WIDE, *_NARROW):
            scheme = OpScheme(mode="static", weight=weight, input=source)
            yield Offer(scheme, "simulated", refuses=_routed)
        scheme = OpScheme(mode="dynamic", weight=weight, input=_NARROW_TOKEN)
        yield Offer(scheme, "simulated", refuses=_is_conv)


def _fp8_products(device: str) -> Iterator[Offer]:
    # A CPU has the fp8 product too, and takes longer over it than over float32: nothing is gained
    # but the numbers.
    realization: Realization = "kernel"
    if torch.device(device).type == "cpu":
        realization = "simulated"
    for weight, source in ((_FP8_CHANNEL, _FP8_TOKEN), (_FP8_TENSOR, _FP8_TENSOR)):
        scheme = OpScheme(mode="dynamic", weight=weight, input=source)
        yield Offer(scheme, realization, partial(_fp8, device, source == _FP8_TOKEN))


def _group_size(scheme: OpScheme) -> int | None:
    return scheme.weight.group_size if scheme.weight else None


def _recurrent(device: str, kind: str) -> tuple[Offer, ...]:
    if device != "cpu":
        return ()
    weights = (_CHANNEL, _TENSOR)

    def lacking(op: Op) -> str:
        return (
            missing_projected()
            if "proj_size" in op.attributes
            else missing_recurrent(kind)
        )

    schemes = (OpScheme(mode="dynamic", weight=w, input=_UNSIGNED) for w in weights)
    return tuple(
        Offer(scheme, refuses=lacking, narrowed=saturates) for scheme in schemes
    )


def _fits(device: str, op: Op) -> str:
    """Return why a device's integer kernels cannot take an op; empty if they can."""
    assert op.weight is not None
    on_cpu = torch.device(device).type == "cpu"
    if op.type == "linear":
        return (
            onednn.missing_linear() if on_cpu else accelerators.missing_linear(device)
        )
    if not on_cpu:
        return f"torch has no integer convolution on {device}"
    return onednn.missing_conv(len(op.weight.shape) - 2)


def _observed(device: str, op: Op) -> str:
    """Return why no static range can be had for an op; empty if it can."""
    return _routed(op) or _fits(device, op)


def _routed(op: Op) -> str:
    """Return why an op may meet no token in calibration; empty if it meets all."""
    if "routed" in op.attributes:
        return (
            "routing decides which tokens an expert meets, perhaps none: "
            "use mode dynamic or weight_only"
        )
    return ""


def _is_conv(op: Op) -> str:
    """Return why an op's input has no tokens; empty if it has."""
    return "the input of a convolution has no tokens" if op.type == "conv" else ""


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
    if op.weight is None or op.weight.dtype not in _CASTS:
        return ""
    return f"its weight is {op.weight.dtype} already"
