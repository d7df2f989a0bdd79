"""What the NumPy backend carries out, best first."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np

from octavo.adapters.numpy.kernels.parallel import blas_kernels
from octavo.core.contract.revision import REVISION
from octavo.core.numerics.channels import RESCALE_FEATURES
from octavo.core.values.capability import LOW_RANK_REPAIR, Capability, Offer
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.sizes import SCALES_OF_GROUPS

_INT8 = QuantSpec(dtype="int8")
_INT8_CHANNEL = QuantSpec(dtype="int8", granularity="channel")
_WEIGHTS = (
    _INT8_CHANNEL,
    _INT8,
    QuantSpec(dtype="int8", symmetric=False, granularity="channel"),
    QuantSpec(dtype="int8", symmetric=False),
)
_INPUTS = (QuantSpec(dtype="uint8", symmetric=False), _INT8)


def _integer(mode: Literal["static", "dynamic"]) -> list[Offer]:
    """Return integer arithmetic on 8-bit weights and inputs, best first."""
    pairs = product(_WEIGHTS, _INPUTS)
    return [Offer(OpScheme(mode=mode, weight=weight, input=x)) for weight, x in pairs]


def _by_channel(dtype: str) -> Offer:
    weight = QuantSpec(dtype=dtype, granularity="channel")
    return Offer(OpScheme(mode="weight_only", weight=weight))


def _grouped(
    dtype: str, symmetric: bool = True, scale_dtype: str = SCALES_OF_GROUPS
) -> Offer:
    """Return codes in groups; the file holds their scales in other formats too."""
    weight = QuantSpec(
        dtype=dtype,
        symmetric=symmetric,
        granularity="group:32",
        scale_dtype=scale_dtype,
    )
    scheme = OpScheme(mode="weight_only", weight=weight)
    return Offer(scheme, scales=(None, "float16", "bfloat16", "uint8"))


_BYTES = _by_channel("int8")
_NARROW = (
    _grouped("int4"),
    _grouped("uint4", symmetric=False),
    _grouped("nf4", scale_dtype="float16"),
    _by_channel("fp8_e4m3fn"),
    _grouped("int3", symmetric=False),
    _grouped("int2", symmetric=False),
)
_TOKEN = Offer(
    OpScheme(
        mode="dynamic",
        weight=_INT8_CHANNEL,
        input=QuantSpec(dtype="int8", granularity="token"),
    )
)
# 16-bit activations: products of 23 bits, carried by BLAS in float64.
_WIDE = Offer(
    OpScheme(mode="static", weight=_INT8_CHANNEL, input=QuantSpec(dtype="int16"))
)
_INTEGER = (*_integer("static"), *_integer("dynamic"))

_STORED = (_BYTES, *_NARROW)
_REPAIRED = tuple(replace(offer, repairs=True) for offer in _STORED)

OFFERS: dict[str, tuple[Offer, ...]] = {
    "linear": (*_INTEGER, _TOKEN, *_REPAIRED, _WIDE),
    "conv": (*_INTEGER, _BYTES, _WIDE),
    "embedding": _REPAIRED,
}
"""Type of op -> what it can run as, best first."""


def capability() -> Capability:
    """Return what the backend carries out: integer arithmetic, exact on any processor."""
    versions = {"numpy": np.__version__, "blas": blas_kernels() or "unknown"}
    features = frozenset({*RESCALE_FEATURES.values(), LOW_RANK_REPAIR, REVISION})
    return Capability("numpy", "cpu", OFFERS, features, versions)
