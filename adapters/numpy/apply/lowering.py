"""From a recipe's parameters to a quantized graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from octavo.adapters.numpy.describe.ops import channel_axis
from octavo.adapters.numpy.graph import Graph, Node
from octavo.adapters.numpy.kernels.identity import IdentityCache
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.affine import QuantParams, integer_range
from octavo.core.numerics.codec import decode
from octavo.core.numerics.layout import to_matrix
from octavo.core.numerics.packing import pack as pack_bits
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.sizes import block_shape, is_grouped

_packed = IdentityCache()
_KEPT = ("group", "strides", "dilations", "pads", "auto_pad", "transB", "activation")


def quantized(graph: Graph, parameters: Mapping[str, OpParameters]) -> Graph:
    """Return the graph with the named nodes quantized. Everything else is shared with the float graph."""
    return _Lowering(graph).run(parameters)


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._constants: dict[str, np.ndarray] = {}
        self._nodes: list[Node] = []
        self._codes: dict[
            tuple[object, ...], tuple[str, str]
        ] = {}  # value and format -> (codes, scale)

    def run(self, parameters: Mapping[str, OpParameters]) -> Graph:
        for node in self._graph.nodes:
            given = parameters.get(node.name)
            if given is None or given.scheme.is_float:
                self._nodes.append(node)
            else:
                self._quantized(node, given)
        constants = {**self._graph.initializers, **self._constants}
        used = {v for n in self._nodes for v in self._graph.reads(n)} | set(self._graph.outputs)
        graph = self._graph.with_(
            nodes=tuple(self._nodes), initializers={k: v for k, v in constants.items() if k in used}
        )
        return fuse_requantization(graph)

    def _constant(self, name: str, array: np.ndarray) -> str:
        self._constants[name] = array
        return name

    def _weight_only(self, node: Node, given: OpParameters) -> None:
        """Keep the weight packed; a node before (or instead of) this one unpacks it."""
        assert given.weight is not None
        weight = given.weight
        axis = 0 if node.op == "Gather" else channel_axis(node)
        name = node.inputs[0 if node.op == "Gather" else 1]
        rows = _packed.get(weight, ("rows", axis), lambda: pack_rows(weight, axis))
        prefix = f"{name}.{given.scheme.weight}.{given.scheme.algorithm}"
        if (
            f"{prefix}.codes" in self._constants
            and self._constants[f"{prefix}.codes"] is not rows.codes
        ):
            prefix = f"{prefix}.{node.name}"
        inputs = (
            self._constant(f"{prefix}.codes", rows.codes),
            self._constant(f"{prefix}.scale", rows.scale),
            "" if rows.zero is None else self._constant(f"{prefix}.zero_point", rows.zero),
            self._constant(f"{prefix}.table", rows.table),
        )
        attributes = {"bits": rows.bits, "columns": rows.columns}
        dtype = self._graph.initializers[name].dtype.name
        if node.op == "Gather":
            rows_of = {**attributes, "features": weight.shape[1]}
            self._emit(
                node.with_(
                    op="octavo.DequantizeRows", inputs=(*inputs, node.inputs[1]), attributes=rows_of
                ),
                dtype,
            )
            return
        value = f"{prefix}.float"
        if all(value not in n.outputs for n in self._nodes):
            shape = {"shape": weight.shape, "axis": axis}
            self._emit(
                Node(
                    "octavo.Dequantize",
                    inputs,
                    (value,),
                    f"{prefix}.dequantize",
                    {**attributes, **shape},
                ),
                dtype,
            )
        bias = node.inputs[2:]
        if given.bias is not None:
            bias = (self._constant(f"{node.name}.bias", np.asarray(given.bias, np.float32)),)
        self._nodes.append(node.with_(inputs=(node.inputs[0], value, *bias)))

    def _quantized(self, node: Node, given: OpParameters) -> None:
        if given.scheme.mode == "weight_only":
            self._weight_only(node, given)
            return
        assert given.weight is not None and given.scheme.input is not None
        codes, scale, largest = self._input(node.inputs[0], given)
        weight = given.weight
        layout = "conv" if node.op == "Conv" else "gemm"
        packed, w_scale, w_zero = _packed.get(weight, layout, lambda: pack(weight, layout))
        prefix = node.name
        inputs = [
            codes,
            scale,
            self._constant(f"{prefix}.codes", packed),
            self._constant(f"{prefix}.scale", w_scale),
        ]
        inputs.append("" if w_zero is None else self._constant(f"{prefix}.zero_point", w_zero))
        if given.bias is not None:
            inputs.append(self._constant(f"{prefix}.bias", np.asarray(given.bias, np.float32)))
        else:
            inputs.append(node.inputs[2] if len(node.inputs) > 2 else "")
        attributes = {k: node.attributes[k] for k in _KEPT if k in node.attributes}
        op = "octavo.QuantizedConv" if node.op == "Conv" else "octavo.QuantizedGemm"
        made = node.with_(
            op=op, inputs=tuple(inputs), attributes={**attributes, "largest": largest}
        )
        self._emit(made, self._graph.initializers[node.inputs[1]].dtype.name)

    def _emit(self, node: Node, dtype: str) -> None:
        """Add a node that computes in float32; a model of half precision keeps its type outside."""
        if dtype == "float32":
            self._nodes.append(node)
            return
        wide = f"{node.outputs[0]}.float32"
        self._nodes.append(node.with_(outputs=(wide,)))
        self._nodes.append(Node("Cast", (wide,), node.outputs, f"{node.name}.cast", {"to": dtype}))

    def _input(self, value: str, given: OpParameters) -> tuple[str, str, int]:
        """Quantize a value once for all its consumers of one format."""
        scheme: OpScheme = given.scheme
        spec: QuantSpec = scheme.input  # type: ignore[assignment]
        low, high = integer_range(spec)
        if scheme.mode == "static":
            params = given.inputs[0]
            assert params is not None
            zero = int(params.zero_point)
            key: tuple[object, ...] = (value, float(params.scale), zero, low, high)
            if key not in self._codes:
                name = f"{value}.codes{len(self._codes)}"
                scale = self._constant(
                    f"{name}.scale", np.asarray(params.scale, np.float32).reshape(())
                )
                point = self._constant(f"{name}.zero_point", np.asarray(zero, np.int32))
                self._nodes.append(
                    Node(
                        "octavo.Quantize",
                        (value, scale, point),
                        (name,),
                        name,
                        {"low": low, "high": high},
                    )
                )
                self._codes[key] = (name, scale)
            return *self._codes[key], max(zero - low, high - zero)
        key = (value, spec.symmetric, spec.granularity, low, high)
        if key not in self._codes:
            name = f"{value}.codes{len(self._codes)}"
            attributes = {
                "low": low,
                "high": high,
                "symmetric": int(spec.symmetric),
                "granularity": spec.granularity,
            }
            self._nodes.append(
                Node("octavo.DynamicQuantize", (value,), (name, f"{name}.scale"), name, attributes)
            )
            self._codes[key] = (name, f"{name}.scale")
        return *self._codes[key], _largest(spec)


def _largest(spec: QuantSpec) -> int:
    """Bound of |q - zero_point| where the zero point is found at run time."""
    low, high = integer_range(spec)
    if spec.symmetric:
        middle = 0 if low < 0 else (low + high + 1) // 2
        return max(middle - low, high - middle)
    return high - low


def pack(weight: QuantizedTensor, layout: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return codes as the kernel reads them, scales and zero points (None where all are zero).

    A convolution's (O, C / g, kernel...) becomes (kernel..., C / g, O); a matrix stays as it is.
    """
    codes = np.asarray(weight.codes)
    if layout == "conv":
        codes = np.ascontiguousarray(codes.transpose(*range(2, codes.ndim), 1, 0))
    params: QuantParams = weight.params
    zero = np.asarray(params.zero_point)
    return (
        codes,
        np.asarray(params.scale, np.float32),
        None if not zero.any() else zero.astype(np.int16),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """A weight as packed rows, one for each channel; see :mod:`.operators.packed`."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    table: np.ndarray
    bits: int
    columns: int


def pack_rows(weight: QuantizedTensor, axis: int) -> PackedRows:
    """Pack a weight at its bit width, row by row."""
    params = weight.params
    spec, codes = params.spec, np.asarray(to_matrix(weight.codes, axis))
    raw = np.arange(2**spec.bits, dtype=np.uint8)
    if codes.dtype == np.int8:  # the same bits read with a sign
        raw = ((raw.astype(np.int16) ^ (1 << spec.bits - 1)) - (1 << spec.bits - 1)).astype(np.int8)
    unit = QuantParams(
        np.float32(1) * np.ones((), np.float32),
        np.zeros((), np.int32),
        spec.model_copy(update={"granularity": "tensor"}),
    )
    zero = np.asarray(params.zero_point)
    return PackedRows(
        np.asarray(pack_bits(codes, spec.bits)),
        np.asarray(params.scale, np.float32),
        None if not zero.any() else zero.astype(np.int16),
        np.asarray(decode(raw, unit), np.float32),
        spec.bits,
        block_shape(spec)[1] if is_grouped(spec) else 0,
    )


def fuse_requantization(graph: Graph) -> Graph:
    """Let a quantized op write codes itself where all that reads its float output is one Quantize."""
    consumers, producers = graph.consumers(), graph.producers()
    changed: dict[str, Node | None] = {}
    for node in graph.nodes:
        if node.op != "octavo.Quantize":
            continue
        value, scale, zero_point = node.inputs
        before = producers.get(value)
        if (
            before is None
            or before.op not in ("octavo.QuantizedConv", "octavo.QuantizedGemm")
            or value in graph.outputs
            or len(consumers[value]) != 1
        ):
            continue
        zero = int(graph.initializers[zero_point])
        attributes = {
            **before.attributes,
            "low": node.attributes["low"] - zero,
            "high": node.attributes["high"] - zero,
        }
        current = changed.get(before.name) or before
        changed[before.name] = current.with_(
            inputs=(*before.inputs, scale), outputs=node.outputs, attributes=attributes
        )
        changed[node.name] = None
    return graph.with_(
        nodes=tuple(n for n in (changed.get(n.name, n) for n in graph.nodes) if n is not None)
    )
