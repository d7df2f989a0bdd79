"""Which schemes are offered: each tried on a model of one op, on this machine.

The answers are kept for the life of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache, partial

import numpy as np
import openvino as ov

from octavo.plugin import (
    Batch,
    Candidate,
    Capability,
    Offer,
    Op,
    OpScheme,
    QuantSpec,
    Recipe,
    Session,
    established,
    one_op_parameters,
)

from . import OpenVinoConfig

Ask = Callable[..., tuple[Session, Batch]]
"""Takes an op type, and whether all codes are the largest; returns a model of that op, a batch."""
Probe = Callable[..., tuple[Session, Batch]]
"""The same, with the backend's settings in front."""


@lru_cache
def _asking(probe: Probe, config: OpenVinoConfig) -> Ask:
    # One object for the same settings: what was established is kept by it.
    return partial(probe, config)


_U8 = QuantSpec(dtype="uint8", symmetric=False)
_S8 = QuantSpec(dtype="int8")
_W8 = QuantSpec(dtype="int8", granularity="channel")
_W8_TENSOR = QuantSpec(dtype="int8")
STATIC = OpScheme(mode="static", weight=_W8, input=_U8)
"""What runs fastest."""
DYNAMIC = OpScheme(
    mode="dynamic", weight=_W8, input=QuantSpec(dtype="int8", granularity="group:32")
)
"""Inputs are rounded in blocks of 32 when they come."""
_LOOP = (
    "two activations meet in a plain loop on CPUs without VNNI: 0.8 of float's speed"
)
_PRODUCTS = ("linear", "conv", "conv_transpose")
_RECURRENT = ("lstm", "gru")
_PLAIN = ("add", "mul", "concat", "avg_pool")
"""Op types without a weight that run on codes."""
_KINDS = (*_PRODUCTS, "matmul", "embedding", *_RECURRENT, *_PLAIN)


def _blocks(dtype: str, size: int) -> QuantSpec:
    # Scales in halves: the compiler decodes with them, and they are half as large in the file.
    return QuantSpec(
        dtype=dtype,
        symmetric=dtype != "uint4",
        granularity=f"group:{size}",
        scale_dtype="float16",
    )


def _candidates(kind: str, ask: Ask) -> tuple[Offer, ...]:
    """Schemes worth asking the runtime about, fastest and smallest first."""
    if kind in _PRODUCTS:
        static = _static(kind, ask)
        if kind != "linear":
            return (*static, _weight_only(_W8))
        return (*static, Offer(DYNAMIC), *map(_weight_only, _packed()))
    if kind == "embedding":
        tables = (_W8, _blocks("int8", 128), _blocks("int8", 32), _blocks("uint4", 32))
        return tuple(map(_weight_only, tables))
    if kind in _RECURRENT:
        return (_weight_only(_W8),)
    if kind == "matmul":
        # Either side may be the one that is read without a sign.
        is_narrow = saturates("linear", ask)
        scheme = OpScheme(mode="static", input=_S8.reduced() if is_narrow else _S8)
        return (Offer(scheme, slower=_LOOP if is_narrow else ""),)
    return tuple(Offer(OpScheme(mode="static", input=x)) for x in (_U8, _S8))


def _packed() -> list[QuantSpec]:
    found = [_W8, *(_blocks("int8", n) for n in (128, 64, 32))]
    found += [_blocks(kind, n) for n in (32, 64, 128) for kind in ("uint4", "int4")]
    found += [_blocks("nf4", n) for n in (64, 32)]
    found += [_blocks("fp4_e2m1", 32)]
    found += [QuantSpec(dtype="fp8_e4m3fn", granularity="channel")]
    return found


def _static(kind: str, ask: Ask) -> tuple[Offer, ...]:
    """Static schemes; inputs without a sign come first, as convolutions read them without a
    shift."""
    narrowed = partial(_why_narrowed, kind, ask)
    # Where sums saturate, the compiler halves the weights of a product with signed inputs.
    inputs = (_U8,) if saturates(kind, ask) else (_U8, _S8)
    schemes = [
        OpScheme(mode="static", weight=w, input=x)
        for w in (_W8, _W8_TENSOR)
        for x in inputs
    ]
    return tuple(Offer(scheme, narrowed=narrowed) for scheme in schemes)


def _weight_only(weight: QuantSpec) -> Offer:
    scheme = OpScheme(mode="weight_only", weight=weight)
    size = weight.group_size
    if size is None:
        return Offer(scheme)
    scales = (None, "float16")
    return Offer(scheme, refuses=partial(_why_not_in_blocks, size), scales=scales)


def _why_not_in_blocks(size: int, op: Op) -> str:
    assert op.weight is not None
    width = op.weight.size // op.weight.shape[op.weight.channel_axis]
    if width % size:
        return f"its {width} features are not a multiple of {size}"
    return ""


def _why_narrowed(kind: str, ask: Ask) -> str:
    if saturates(kind, ask):
        return "8-bit products are summed in 16 bits on this CPU, which saturate"
    return ""


@lru_cache
def saturates(kind: str, ask: Ask) -> bool:
    """True if products of the largest codes come out too small on this machine.

    CPUs without VNNI add pairs of 8-bit products in 16 bits (Intel, VPMADDUBSW).

    Args:
        kind: ``linear``, ``conv`` or ``conv_transpose``.
        ask: Gives models of one op.
    """
    session, batch = ask(kind, largest=True)
    (op,) = [op for op in session.describe().ops if op.type == kind]
    scheme = OpScheme(mode="static", weight=_W8, input=_S8)
    high = 1.0
    given = one_op_parameters(op, scheme, session.tensor, -high, high)
    (got,) = session.carry_out(Recipe({op.name: scheme}), {op.name: given}).run(batch)
    (expected,) = session.reference().run(batch)
    # All terms have one sign: rounding moves a sum by under a percent, saturation takes most of it.
    return bool(np.abs(got - expected).max() > 0.1 * np.abs(expected).max())


def _seen(candidate: Candidate, op: str) -> str:
    """Return why the execution graph shows no kernel; '' where it does."""
    line = candidate.ledger[op]
    return "" if line.realization == "kernel" else line.reason


@lru_cache
def _offers(kind: str, ask: Ask) -> tuple[Offer, ...]:
    asked = {kind: _candidates(kind, ask)}
    return established(asked, ask, _seen).get(kind, ())


def capability(
    config: OpenVinoConfig, probe: Probe, types: Collection[str] | None = None
) -> Capability:
    """Return what this CPU executes.

    Args:
        config: The backend's settings.
        probe: Returns a session of a model with one op, which carries out whatever it is given.
        types: Op types to establish; None for all that there are.
    """
    # Where a blob is cached, and how many run beside each other, changes no kernel.
    plain = OpenVinoConfig(threads=1, precision=config.precision)
    ask = _asking(probe, plain)
    wanted = _KINDS if types is None else [kind for kind in _KINDS if kind in types]
    offers = {kind: _offers(kind, ask) for kind in wanted}
    offers = {kind: found for kind, found in offers.items() if found}
    versions = {"openvino": ov.get_version()}
    return Capability("openvino", "cpu", offers, frozenset({"rescale"}), versions)
