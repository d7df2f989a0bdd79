"""Which schemes are offered: those that LiteRT was asked about, by models of one op."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

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
)

from . import LitertConfig
from .candidate import LitertCandidate
from .samples import sample

_A8 = QuantSpec(dtype="int8", symmetric=False)
_A16 = QuantSpec(dtype="int16")
_ROWS = QuantSpec(dtype="int8", symmetric=False, granularity="token")
_W8 = QuantSpec(dtype="int8", granularity="channel")
_W8_ONE = QuantSpec(dtype="int8")
_W4 = QuantSpec(dtype="int4", granularity="channel")
_F16 = QuantSpec(dtype="float16")

_INTEGERS = ("int8", "int16")

STORED = {
    "int8": "the weight is decoded when the model is loaded, and computed with in float",
    "int4": "the weight is decoded in each call, and computed with in float",
    "float16": "the weight is decoded when the model is loaded: the arithmetic is float32",
}
"""Type of a weight that is only stored -> what becomes of it (LiteRT 2.3: XNNPACK unpacks constants
behind a DEQUANTIZE once, all but those of 4 bits)."""

_SLOW_16 = (
    "16-bit activations run on reference kernels: 0.01 to 0.05 of float's speed in convolutions, "
    "0.03 to 0.45 in linear layers, 0.1 to 0.9 elsewhere"
)
_SLOW_4 = "convolutions decode 4-bit weights in each call: 0.1 to 0.5 of float's speed"
_SLOW_STORED_4 = "4-bit weights are decoded in each call: 0.1 to 0.3 of float's speed"


def _weighted(kind: str) -> list[Offer]:
    """Return the offers of an op type with a weight, best first."""
    is_linear = kind == "linear"
    # A linear op finds a scale for each row of its input, a convolution one for each image.
    found = _ROWS if is_linear else _A8
    refuses = None if is_linear else _no_depthwise
    offers = [Offer(_static(_A8, w)) for w in (_W8, _W8_ONE)]
    offers.append(Offer(_dynamic(_W8, found), refuses=refuses))
    narrow = (_static(_A8, _W4), _dynamic(_W4, found))
    if is_linear:
        offers += [Offer(scheme) for scheme in narrow]
    else:
        offers += [
            Offer(scheme, "simulated", refuses, slower=_SLOW_4) for scheme in narrow
        ]
    offers.append(Offer(_static(_A16, _W8), slower=_SLOW_16))
    offers += [
        Offer(OpScheme(mode="cast", weight=_F16), "simulated"),
        Offer(OpScheme(mode="weight_only", weight=_W8), "simulated"),
        Offer(
            OpScheme(mode="weight_only", weight=_W4), "simulated", slower=_SLOW_STORED_4
        ),
    ]
    return offers


def _static(x: QuantSpec, weight: QuantSpec | None = None) -> OpScheme:
    return OpScheme(mode="static", weight=weight, input=x, output=x)


def _dynamic(weight: QuantSpec, x: QuantSpec) -> OpScheme:
    return OpScheme(mode="dynamic", weight=weight, input=x)


def _no_depthwise(op: Op) -> str:
    """Refuse a depthwise convolution: XNNPACK has none whose scales are found at run time, and the
    built-in one has 0.2 of float's speed, and none for 4 bits."""
    if op.attributes.get("litert") == "DEPTHWISE_CONV_2D":
        return "no fast depthwise kernel finds its input's scales at run time"
    return ""


def _candidates() -> dict[str, tuple[Offer, ...]]:
    """Return what may be possible by op type."""
    found = {kind: _weighted(kind) for kind in ("conv", "linear", "conv_transpose")}
    found["embedding"] = [Offer(OpScheme(mode="weight_only", weight=_W8))]
    own = ("add", "sub", "mul", "concat", "mean")
    # Of two 16-bit activations the kernel's product is off by 0.4 of what rounding costs.
    found["matmul"] = [Offer(_static(_A8))]
    for kind in (*own, "leaky_relu", "hard_swish", "gelu", "elu"):
        found[kind] = [
            Offer(_static(_A8)),
            Offer(_static(_A16), slower=_SLOW_16),
        ]
    # Their result's scale follows from the operator: nothing is calibrated for it.
    for kind in ("avg_pool", "softmax", "sigmoid", "tanh"):
        schemes = [OpScheme(mode="static", input=x) for x in (_A8, _A16)]
        found[kind] = [Offer(schemes[0]), Offer(schemes[1], slower=_SLOW_16)]
    return {kind: tuple(offers) for kind, offers in found.items()}


def untried() -> Capability:
    """Return all that may be possible: what models of one op are tried with."""
    return Capability("litert", offers=_candidates())


def capability(
    config: LitertConfig, probe: Any, types: Iterable[str] | None = None
) -> Capability:
    """Return what LiteRT executes here.

    Args:
        config: Whether XNNPACK computes.
        probe: Opens a model of one op without asking what is offered.
        types: Op types to establish; None for all that there are.
    """
    wanted = _candidates()
    if types is not None:
        wanted = {kind: wanted[kind] for kind in wanted.keys() & set(types)}
    tried = LitertConfig(threads=1, delegate=config.delegate)
    offers = established(wanted, partial(_probe, probe, tried), witness)
    versions = {"ai-edge-litert": version("ai-edge-litert")}
    return Capability("litert", "cpu", offers, frozenset({"rescale"}), versions)


def _probe(probe: Any, config: LitertConfig, kind: str) -> tuple[Session, Batch] | None:
    found = sample(kind)
    return None if found is None else (probe(found[0], config), found[1])


def witness(candidate: Candidate, name: str) -> str:
    """Return why a model of one op does not compute it in integers; empty where it does.

    The interpreter tells the types that the operator's kernel was given. Where its activations are
    float, they are rounded by the kernel itself: then a change of one number by much less than a
    step changes nothing in the output.
    """
    assert isinstance(candidate, LitertCandidate)
    interpreter = candidate.compiled.interpreter
    dtypes = {}
    for tensor in interpreter.get_tensor_details():
        dtypes[tensor["index"]] = np.dtype(tensor["dtype"]).name
    for op in interpreter._get_ops_details():
        if op["op_name"] in ("QUANTIZE", "DEQUANTIZE", "DELEGATE"):
            continue
        read = {dtypes[index] for index in op["inputs"] if index >= 0}
        written = dtypes[op["outputs"][0]]
        if written in _INTEGERS and written in read and "float32" not in read:
            return ""
        if written == "float32" and "int8" in read and _rounds_its_input(candidate):
            return ""
        return f"{op['op_name']} of {name!r} computes over {', '.join(sorted(read))}"
    return "the interpreter has no operator for it"


def _rounds_its_input(candidate: LitertCandidate) -> bool:
    """Return whether an input that is a little different gives the same output, bit for bit."""
    rng = np.random.default_rng(0)
    shape = [n or 1 for n in candidate.inputs[0].shape or ()]
    x = rng.normal(size=shape).astype(np.float32)
    moved = x.copy()
    moved.flat[0] = x.flat[0] = 0.1
    moved.flat[0] += 1e-4
    before, after = candidate.run((x,)), candidate.run((moved,))
    return np.array_equal(before[0], after[0])


def reason_of(recipe: Recipe, op: Op) -> str:
    """Return what a reader of the ledger must know of an op beside how it is carried out."""
    scheme = recipe[op.name]
    if scheme.is_float or op.type == "embedding":
        return op.out_of_reach
    if scheme.mode in ("cast", "weight_only") and scheme.weight is not None:
        return STORED[scheme.weight.dtype]
    return ""
