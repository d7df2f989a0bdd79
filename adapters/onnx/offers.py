"""Which schemes are offered: those that ONNX Runtime was asked about, with what it made of them.

For each op type and scheme a one-op model is quantized, optimized, read and run. The answers are
kept per runtime version and provider for the life of the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

import onnx
import onnxruntime as ort

from octavo.adapters.onnx.apply.half_precision import HALVES
from octavo.adapters.onnx.kernels.probing import Probe
from octavo.core.contract.revision import REVISION
from octavo.core.numerics.channels import RESCALE_FEATURES
from octavo.core.values.capability import LOW_RANK_REPAIR, Capability, Offer
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.sizes import SCALES_OF_GROUPS

from . import OnnxConfig

_U8 = QuantSpec(dtype="uint8", symmetric=False)
_U8_MID = QuantSpec(dtype="uint8", symmetric=True)
_S8 = QuantSpec(dtype="int8", symmetric=True)
_S4 = QuantSpec(dtype="int4", symmetric=True, granularity="channel")
_U16 = QuantSpec(dtype="uint16", symmetric=False)

_WEIGHTS = tuple(
    QuantSpec(dtype=dtype, symmetric=dtype == "int8", granularity=granularity)
    for granularity in ("channel", "tensor")
    for dtype in ("int8", "uint8")
)
_SIGNED = tuple(weight for weight in _WEIGHTS if weight.symmetric)

_PLAIN = ("add", "mul", "concat", "avg_pool", "sigmoid", "leaky_relu", "softmax")
"""Op types without a weight, whose result has a scale of its own."""


def _candidates() -> dict[str, list[OpScheme]]:
    """Schemes worth asking the runtime about by op type, fastest and smallest first."""
    static = _static()
    # With 16-bit activations the runtime makes a MatMulNBits of a product, which rounds them to
    # 8 bits: not what was asked for.
    products = [s.variant(output=None) for s in static if s.input != _U16]
    dynamic = [OpScheme(mode="dynamic", weight=w, input=_U8) for w in _WEIGHTS]
    blocks = [OpScheme(mode="weight_only", weight=w) for w in _grouped()]
    rows = [OpScheme(mode="weight_only", weight=w) for w in _tables()]
    plain = [OpScheme(mode="static", input=x, output=x) for x in (_U8, _U8_MID, _S8)]
    casts = [OpScheme(mode="cast", weight=QuantSpec(dtype=half)) for half in HALVES]
    # Codes in the file, decoded before the op: no speed, and a quarter of the bytes.
    stored = OpScheme(
        mode="weight_only", weight=_S8.model_copy(update={"granularity": "channel"})
    )
    found = {
        "conv": static + dynamic + casts,
        "conv_transpose": static + casts,
        "linear": products + dynamic + _level4() + blocks + casts,
        "embedding": rows + casts,
        "matmul": [s.variant(output=None) for s in plain],
        # A stack of matrices takes one scale: the kernels know none for each matrix' columns.
        "batched_linear": _of_one_scale([*products, *dynamic]),
        "lstm": [*dynamic, stored],
        "gru": [stored],
        "rnn": [stored],
    }
    found.update((kind, plain) for kind in _PLAIN)
    return found


def _static() -> list[OpScheme]:
    """Static schemes; unsigned activations run fastest on x86 and ARM alike, and come first."""
    found = [OpScheme(mode="static", weight=w, input=_U8, output=_U8) for w in _WEIGHTS]
    for x in (_U8_MID, _S8, _U16):
        found += [OpScheme(mode="static", weight=w, input=x, output=x) for w in _SIGNED]
    found.append(OpScheme(mode="static", weight=_S4, input=_U8, output=_U8))
    return found


def _grouped() -> list[QuantSpec]:
    """Weights of matrix products in blocks."""
    found = [_blocks("uint4", size) for size in (32, 64, 128, 16)]
    found += [_blocks("int4", size) for size in (32, 128)]
    return found + [_blocks(dtype, 32) for dtype in ("int8", "int2")]


def _tables() -> list[QuantSpec]:
    """Weights of look-ups in blocks."""
    found = [_blocks("int8", size) for size in (128, 32)]
    return found + [_blocks("uint4", size) for size in (16, 32)]


def _blocks(dtype: str, size: int) -> QuantSpec:
    """Return codes in blocks; those without a sign have zero points."""
    return QuantSpec(
        dtype=dtype,
        symmetric=not dtype.startswith("u"),
        granularity=f"group:{size}",
        scale_dtype=SCALES_OF_GROUPS,
    )


_SCALES = (None, "float16", "bfloat16", "uint8")
"""Formats of scales that the file holds: the runtime widens all of them when it loads a model, and
runs the same kernel."""


def _level4() -> list[OpScheme]:
    """MatMulNBits' accuracy level 4: activations in int8, in the weight's blocks."""
    found = []
    for weight in _grouped():
        x = _S8.model_copy(update={"granularity": weight.granularity})
        found.append(OpScheme(mode="dynamic", weight=weight, input=x))
    return found


def _of_one_scale(schemes: Iterable[OpScheme]) -> list[OpScheme]:
    return [
        s for s in schemes if s.weight is not None and s.weight.granularity == "tensor"
    ]


@lru_cache
def _offers(version: str, providers: tuple[str, ...], kind: str) -> tuple[Offer, ...]:
    del version  # part of the key alone
    probe = Probe.of(kind, OnnxConfig(providers=providers, threads=1))
    schemes = _candidates()[kind]
    answers = (probe.ask(scheme) for scheme in schemes)
    return tuple(_completed(kind, offer) for offer in answers if offer is not None)


def _completed(kind: str, offer: Offer) -> Offer:
    """Return an offer with what goes with weights in blocks: further formats of their scales, and
    thin products in float beside an op whose result is float."""
    weight = offer.scheme.weight
    if weight is None or weight.group_size is None:
        return offer
    is_repaired = kind in ("linear", "embedding")
    return replace(offer, repairs=is_repaired, scales=_SCALES)


def capability(config: OnnxConfig, types: Iterable[str] | None = None) -> Capability:
    """Return what the configured providers execute.

    Args:
        config: Names the providers.
        types: Op types to establish; None for all that there are.
    """
    wanted = frozenset(_candidates() if types is None else types)
    offers = {}
    for kind in _candidates():
        if kind in wanted:
            offers[kind] = _offers(ort.__version__, config.providers, kind)
    if config.providers == ("CPUExecutionProvider",):
        device = "cpu"
    else:
        device = config.providers[0]
    versions = {"onnxruntime": ort.__version__, "onnx": onnx.__version__}
    features = frozenset({*RESCALE_FEATURES.values(), LOW_RANK_REPAIR, REVISION})
    return Capability("onnx", device, offers, features, versions)
