"""What the NumPy backend carries out, best first."""

from __future__ import annotations

import numpy as np

from octavo.adapters.numpy.kernels.parallel import blas_kernels
from octavo.core.numerics.channels import FEATURES
from octavo.core.values.capability import Capability, Offer
from octavo.core.values.scheme import OpScheme, QuantSpec


def _offers(*weight_only: Offer) -> tuple[Offer, ...]:
    weights = [
        QuantSpec(dtype="int8", granularity="channel"),
        QuantSpec(dtype="int8"),
        QuantSpec(dtype="int8", symmetric=False, granularity="channel"),
        QuantSpec(dtype="int8", symmetric=False),
    ]
    inputs = [QuantSpec(dtype="uint8", symmetric=False), QuantSpec(dtype="int8")]
    found = [
        Offer(OpScheme(mode=mode, weight=w, input=x))
        for mode in ("static", "dynamic")
        for w in weights
        for x in inputs
    ]
    # 16-bit activations: products of 23 bits, carried by BLAS in float64.
    wide = Offer(OpScheme(mode="static", weight=weights[0], input=QuantSpec(dtype="int16")))
    return (*found, *weight_only, wide)


def _weight_only(dtype: str, granularity: str, symmetric: bool = True) -> Offer:
    return Offer(
        OpScheme(
            mode="weight_only",
            weight=QuantSpec(dtype=dtype, symmetric=symmetric, granularity=granularity),
        )
    )


_INT8 = _weight_only("int8", "channel")
_NARROW = (
    _weight_only("int4", "group:32"),
    _weight_only("uint4", "group:32", symmetric=False),
    _weight_only("nf4", "group:32"),
    _weight_only("fp8_e4m3fn", "channel"),
    _weight_only("int3", "group:32", symmetric=False),
    _weight_only("int2", "group:32", symmetric=False),
)
_TOKEN = Offer(
    OpScheme(
        mode="dynamic",
        weight=QuantSpec(dtype="int8", granularity="channel"),
        input=QuantSpec(dtype="int8", granularity="token"),
    )
)
OFFERS: dict[str, tuple[Offer, ...]] = {
    "linear": (*_offers(_TOKEN, _INT8, *_NARROW),),
    "conv": _offers(_INT8),
    "embedding": (_INT8, *_NARROW),
}


def capability() -> Capability:
    """Return what the backend carries out: integer arithmetic, exact on any processor."""
    versions = {"numpy": np.__version__, "blas": blas_kernels() or "unknown"}
    return Capability("numpy", "cpu", OFFERS, frozenset(FEATURES.values()), versions)
