"""Which integer kernels ONNX Runtime really runs, read from its optimized graph and never assumed.

For each op type and scheme a one-op model is quantized, optimized, read and run. What fuses into an integer kernel and
answers close to float is offered as ``kernel``; what runs but stays float arithmetic as ``simulated``; the rest not at all.
The answers are kept per runtime version and provider for the life of the process.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from octavo.adapters.onnx.apply.editing import Emitted
from octavo.adapters.onnx.apply.emit import emit
from octavo.adapters.onnx.apply.half_precision import HALVES, runs_in_half
from octavo.adapters.onnx.describe.sites import Sites, find_sites
from octavo.adapters.onnx.kernels.saturation import is_signed_product, saturates
from octavo.adapters.onnx.prepare.opset import CONVERTED, IR_VERSION
from octavo.adapters.onnx.prepare.preparation import prepare
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import AdapterFault, ModelError
from octavo.core.numerics.affine import QuantParams, affine_params, quantize
from octavo.core.numerics.channels import FEATURES
from octavo.core.numerics.layout import from_matrix, to_matrix
from octavo.core.numerics.ranges import ranges
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.capability import Capability, Offer
from octavo.core.values.graph import Op
from octavo.core.values.scheme import OpScheme, QuantSpec

from . import OnnxConfig
from .run import RUNTIME_ERRORS, compile_model

logger = logging.getLogger(__name__)

INTEGER_KERNELS = frozenset({
    "QLinearConv", "QLinearConvTranspose", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul", "ConvInteger",
    "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearSigmoid", "QLinearLeakyRelu",
    "QLinearSoftmax", "QLinearReduceMean", "DynamicQuantizeLSTM", "QAttention", "MatMulNBits", "GatherBlockQuantized",
})  # fmt: skip
"""Op types whose CPU kernels compute on integers, or on packed weights block by block."""

_TOKEN = re.compile(r"(_token_\d+)+$")


def low_precision_kernels(
    nodes: Iterable[onnx.NodeProto], emitted: Mapping[str, Emitted]
) -> dict[str, str]:
    """Return op name -> integer (or half-precision) kernel for every op that runs on one in an optimized graph.

    Args:
        nodes: The optimized graph's nodes. Fused nodes keep the main node's name, with ``_token_N`` appended by layout changes.
        emitted: What was written for each op.
    """
    wanted = {e.node: op for op, e in emitted.items()}
    found: dict[str, str] = {}
    for node in nodes:
        op = wanted.get(node.name) or wanted.get(_TOKEN.sub("", node.name))
        if op is None:
            continue
        if half := emitted[op].half:
            if runs_in_half(node):
                found[op] = f"{node.op_type} in {half}"
        elif node.op_type in INTEGER_KERNELS:
            found[op] = node.op_type
    return found


_FLOAT_RESULTS = frozenset({
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "GatherBlockQuantized", "QAttention",
})  # fmt: skip
"""Integer kernels whose results are float."""


def given_codes(nodes: Sequence[onnx.NodeProto], wanted: Collection[str | None]) -> frozenset[str]:
    """Return those of some nodes whose first input is codes in an optimized graph.

    Args:
        nodes: The optimized graph's nodes.
        wanted: Names of nodes that move the values of their first input: a chain of them is followed to its beginning.
    """
    makers = {value: node for node in nodes for value in node.output}
    found = set()
    for node in nodes:
        name = _TOKEN.sub("", node.name)
        if name in wanted and node.input and _is_codes(makers, node.input[0], wanted):
            found.add(name)
    return frozenset(found)


def _is_codes(
    makers: Mapping[str, onnx.NodeProto], value: str, wanted: Collection[str | None]
) -> bool:
    node = makers.get(value)
    while (
        node is not None
        and (_TOKEN.sub("", node.name) in wanted or node.op_type in ("Transpose", "Reshape"))
        and node.input
    ):
        node = makers.get(node.input[0])
    if node is None:
        return False
    integer = node.op_type in INTEGER_KERNELS and node.op_type not in _FLOAT_RESULTS
    return integer or node.op_type in ("QuantizeLinear", "ConvInteger", "MatMulInteger")


_NO_KERNEL = (
    "NOT_IMPLEMENTED",
    "Type Error",
    "No Op registered",
    "is not a registered function/op",
    "while running",
)
"""What ONNX Runtime says where it has no kernel: for an operator, for a tensor's type, or for the settings, in the kernel itself."""

_U8 = QuantSpec(dtype="uint8", symmetric=False)
_U8_MID = QuantSpec(dtype="uint8", symmetric=True)
_S8 = QuantSpec(dtype="int8", symmetric=True)
_S4 = QuantSpec(dtype="int4", symmetric=True, granularity="channel")
_U16 = QuantSpec(dtype="uint16", symmetric=False)
_WEIGHTS = tuple(
    QuantSpec(dtype=d, symmetric=s, granularity=g)
    for g in ("channel", "tensor")
    for d, s in (("int8", True), ("uint8", False))
)
_SIGNED = tuple(w for w in _WEIGHTS if w.symmetric)


def _candidates() -> dict[str, list[OpScheme]]:
    """Schemes worth asking the runtime about, fastest and smallest first (unsigned activations run fastest on x86 and ARM alike)."""
    static = [OpScheme(mode="static", weight=w, input=_U8, output=_U8) for w in _WEIGHTS]
    static += [
        OpScheme(mode="static", weight=w, input=x, output=x)
        for x in (_U8_MID, _S8, _U16)
        for w in _SIGNED
    ]
    static.append(OpScheme(mode="static", weight=_S4, input=_U8, output=_U8))
    # With 16-bit activations the runtime makes a MatMulNBits of a product, which rounds them to 8 bits: not what was asked for.
    products = [s.variant(output=None) for s in static if s.input != _U16]
    dynamic = [OpScheme(mode="dynamic", weight=w, input=_U8) for w in _WEIGHTS]
    grouped = [
        QuantSpec(dtype="uint4", symmetric=False, granularity=f"group:{n}")
        for n in (32, 64, 128, 16)
    ]
    grouped += [QuantSpec(dtype="int4", granularity=f"group:{n}") for n in (32, 128)]
    grouped += [QuantSpec(dtype=d, granularity="group:32") for d in ("int8", "int2")]
    blocks = [OpScheme(mode="weight_only", weight=w) for w in grouped]
    level4 = [
        OpScheme(
            mode="dynamic", weight=w, input=_S8.model_copy(update={"granularity": w.granularity})
        )
        for w in grouped
    ]
    tables = [
        QuantSpec(dtype="int8", granularity="group:128"),
        QuantSpec(dtype="int8", granularity="group:32"),
    ]
    tables += [
        QuantSpec(dtype="uint4", symmetric=False, granularity=f"group:{n}") for n in (16, 32)
    ]
    rows = [OpScheme(mode="weight_only", weight=w) for w in tables]
    plain = [OpScheme(mode="static", input=x, output=x) for x in (_U8, _U8_MID, _S8)]
    casts = [OpScheme(mode="cast", weight=QuantSpec(dtype=half)) for half in HALVES]
    # A stack of matrices takes one scale: the kernels know none for each matrix' columns.
    whole = [
        s
        for s in (*products, *dynamic)
        if s.weight is not None and s.weight.granularity == "tensor"
    ]
    # Codes in the file, decoded before the op: no speed, and a quarter of the bytes.
    stored = OpScheme(mode="weight_only", weight=_S8.model_copy(update={"granularity": "channel"}))
    found = {
        "conv": static + dynamic + casts,
        "conv_transpose": static + casts,
        "linear": products + dynamic + level4 + blocks + casts,
        "embedding": rows + casts,
        "matmul": [s.variant(output=None) for s in plain],
        "batched_linear": whole,
        "lstm": [*dynamic, stored],
        "gru": [stored],
        "rnn": [stored],
    }
    for kind in ("add", "mul", "concat", "avg_pool", "sigmoid", "leaky_relu", "softmax"):
        found[kind] = plain
    return found


@lru_cache
def _offers(version: str, providers: tuple[str, ...], kind: str) -> tuple[Offer, ...]:
    del version
    config = OnnxConfig(providers=providers, threads=1)
    probe = _Probe.of(kind, config)
    return tuple(
        offer for scheme in _candidates()[kind] if (offer := probe.ask(scheme)) is not None
    )


def capability(config: OnnxConfig, types: Iterable[str] | None = None) -> Capability:
    """Return what the configured providers execute.

    Args:
        config: Names the providers.
        types: Op types to establish; None for all that there are.
    """
    kinds = [kind for kind in _candidates() if types is None or kind in set(types)]
    offers = {kind: _offers(ort.__version__, config.providers, kind) for kind in kinds}
    device = "cpu" if config.providers == ("CPUExecutionProvider",) else config.providers[0]
    return Capability(
        "onnx",
        device,
        offers,
        frozenset(FEATURES.values()),
        {"onnxruntime": ort.__version__, "onnx": onnx.__version__},
    )


_PROBES: Mapping[
    str, tuple[str, Mapping[str, Any], Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]]
] = {
    # op type: (ONNX op, attributes, shapes of activations, shapes of constants)
    "conv": ("Conv", {"pads": [1, 1, 1, 1]}, [(1, 8, 6, 6)], [(16, 8, 3, 3), (16,)]),
    "conv_transpose": ("ConvTranspose", {}, [(1, 8, 6, 6)], [(8, 16, 2, 2), (16,)]),
    "linear": ("MatMul", {}, [(2, 3, 256)], [(256, 16)]),
    "matmul": ("MatMul", {}, [(2, 4, 16), (2, 16, 8)], []),
    "embedding": ("Gather", {}, [], [(40, 256)]),
    "add": ("Add", {}, [(1, 8, 6, 6), (1, 8, 6, 6)], []),
    "mul": ("Mul", {}, [(1, 8, 6, 6), (1, 8, 6, 6)], []),
    "concat": ("Concat", {"axis": 1}, [(1, 8, 6, 6), (1, 8, 6, 6)], []),
    "avg_pool": ("GlobalAveragePool", {}, [(1, 8, 6, 6)], []),
    "sigmoid": ("Sigmoid", {}, [(1, 8, 6, 6)], []),
    "leaky_relu": ("LeakyRelu", {}, [(1, 8, 6, 6)], []),
    "batched_linear": ("MatMul", {}, [(2, 2, 3, 16)], [(2, 16, 8)]),
    "gru": ("GRU", {"hidden_size": 8}, [(5, 2, 16)], [(1, 24, 16), (1, 24, 8), (1, 48)]),
    "rnn": ("RNN", {"hidden_size": 8}, [(5, 2, 16)], [(1, 8, 16), (1, 8, 8), (1, 16)]),
    "lstm": ("LSTM", {"hidden_size": 8}, [(5, 2, 16)], [(1, 32, 16), (1, 32, 8), (1, 64)]),
    "softmax": ("Softmax", {"axis": -1}, [(4, 16)], []),
}


@dataclass(frozen=True)
class _Probe:
    """A one-op model with an input and what it answers in float."""

    kind: str
    config: OnnxConfig
    model: ir.Model
    sites: Sites
    given: Mapping[str, np.ndarray]
    expected: np.ndarray

    @classmethod
    def of(cls, kind: str, config: OnnxConfig) -> _Probe:
        """Build the probe of an op type; always the same one."""
        rng = np.random.default_rng(0)
        op_type, attributes, activations, constants = _PROBES[kind]
        model = _one_op(
            op_type,
            attributes,
            activations,
            [rng.normal(size=s).astype(np.float32) for s in constants],
        )
        given: dict[str, np.ndarray] = {
            f"x{i}": rng.normal(size=s).astype(np.float32) for i, s in enumerate(activations)
        }
        if kind == "embedding":
            given = {"ids": np.arange(0, 40, 3)}
        (expected,) = compile_model(model, config).session.run(None, given)
        return cls(kind, config, model, find_sites(model.graph), given, expected)

    def ask(self, scheme: OpScheme) -> Offer | None:
        """Quantize the model and see what the runtime makes of it; None if it cannot run or answers wrongly."""
        seen = {**self.given, "probe_output": self.expected}
        op = self.sites.sites["probe"].op
        narrowed = partial(saturates, self.config.providers) if is_signed_product(scheme) else None
        spec = (
            scheme.weight.reduced() if scheme.weight and narrowed and narrowed() else scheme.weight
        )
        rounded = [_round(self.model, w.name, spec, w.channel_axis) for w in op.weights if spec]
        parameters = OpParameters(
            scheme,
            rounded[0] if rounded else None,
            tuple(_params(seen[v], scheme.input) for v in op.inputs)
            if scheme.mode == "static"
            else (),
            tuple(_params(seen[v], scheme.output) for v in op.outputs) if scheme.output else (),
            further=tuple(rounded[1:]),
        )
        model, emitted = emit(self.model, self.sites, {"probe": parameters})
        try:
            compiled = compile_model(model, self.config, inspect=True)
            (answer,) = compiled.session.run(None, dict(self.given))
        except RUNTIME_ERRORS as error:
            self._not_offered(scheme, error)
            return None
        except ModelError as error:
            if not isinstance(error.__cause__, RUNTIME_ERRORS):
                raise
            self._not_offered(scheme, error)
            return None
        bits = scheme.weight.bits if scheme.weight else 8
        if np.linalg.norm(answer - self.expected) > {16: 0.02, 8: 0.1, 4: 0.3, 2: 1.0}[
            bits
        ] * np.linalg.norm(self.expected):
            return None
        when = _no_relu if scheme.output is not None and scheme.output.symmetric else None
        fused = low_precision_kernels(compiled.nodes, emitted)
        return Offer(
            scheme,
            "kernel" if fused else "simulated",
            when,
            narrowed,
            _known_slower(self.kind, scheme),
        )

    def _not_offered(self, scheme: OpScheme, error: Exception) -> None:
        """Note that the runtime has no kernel; whatever else it says of what was written is a fault of the writer, and told."""
        if any(said in str(error) for said in _NO_KERNEL):
            logger.debug("%s: %s is not offered: %s", self.kind, scheme, error)
            return
        warnings.warn(
            AdapterFault(
                f"onnx: {scheme} for {self.kind} is written wrongly, and not offered: {error}"
            ),
            stacklevel=2,
        )


def _known_slower(kind: str, scheme: OpScheme) -> str:
    """Return why a scheme is slower than float on every processor that was tried; empty for all others.

    ConvInteger, to which dynamic schemes of convolutions come down, multiplies signed weights without the packing that
    QLinearConv has: 0.09 of float's speed on AVX2, 0.2 with VNNI (ONNX Runtime 1.32, 3x3 of 64 channels and whole
    networks). Of unsigned weights it is about as fast as float.
    """
    if (
        kind == "conv"
        and scheme.mode == "dynamic"
        and scheme.weight is not None
        and scheme.weight.dtype == "int8"
    ):
        return "ONNX Runtime's ConvInteger has 0.1 to 0.2 of float's speed with signed weights; take a static scheme"
    return ""


def _no_relu(op: Op) -> str:
    """ReLU and ReLU6 vanish into the output's clipping only where codes begin at 0."""
    return (
        "its fused activation needs an asymmetric output" if op.attributes.get("activation") else ""
    )


def _one_op(
    op_type: str,
    attributes: Mapping[str, Any],
    activations: Sequence[tuple[int, ...]],
    constants: Sequence[np.ndarray],
) -> ir.Model:
    inputs = [
        onnx.helper.make_tensor_value_info(f"x{i}", onnx.TensorProto.FLOAT, s)
        for i, s in enumerate(activations)
    ]
    held = [onnx.numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(constants)]
    names = [*(v.name for v in inputs), *(t.name for t in held)]
    if op_type == "Gather":
        inputs, names = (
            [onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n"])],
            ["c0", "ids"],
        )
    node = onnx.helper.make_node(op_type, names, ["probe_output"], "probe", **attributes)
    output = onnx.helper.make_tensor_value_info("probe_output", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "probe", inputs, [output], held)
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", CONVERTED)], ir_version=IR_VERSION
    )
    return prepare(ir.from_proto(proto))


def _params(array: np.ndarray, spec: QuantSpec | None) -> QuantParams | None:
    return affine_params(array.min(), array.max(), spec) if spec is not None else None


def _round(model: ir.Model, name: str, spec: QuantSpec, axis: int) -> QuantizedTensor:
    held = model.graph.initializers[name].const_value
    assert held is not None
    if spec.dtype in HALVES:
        return QuantizedTensor(
            held.numpy().astype(HALVES[spec.dtype].numpy()),
            QuantParams(np.float32(1), np.int32(0), spec),
        )
    matrix = to_matrix(held.numpy(), axis)
    low, high = ranges(matrix, spec)
    params = affine_params(low, high, spec, None if spec.granularity == "tensor" else 0)
    codes = from_matrix(quantize(matrix, params), tuple(held.shape.numpy()), axis).astype(
        np.uint8 if spec.dtype.startswith("u") else np.int8
    )
    return QuantizedTensor(codes, params if params.axis is None else replace(params, axis=axis))
