"""From a recipe's parameters to a quantized graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from octavo.adapters.numpy.describe.weights import channel_axis
from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.adapters.numpy.kernels.identity import IdentityCache
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.affine import QuantParams, integer_range
from octavo.core.numerics.low_rank import Repair
from octavo.core.values.scheme import QuantSpec

from .packing import PackedRows, PackedWeight, pack, pack_rows
from .requantization import fuse_requantization

# Candidates share weights of the same codes: each is packed once while it lives.
_packed = IdentityCache()

_KEPT = ("group", "strides", "dilations", "pads", "auto_pad", "transB", "activation")
"""Attributes that a quantized operator takes over from the float one."""

_QUANTIZED = {
    "Conv": ("octavo.QuantizedConv", "conv"),
    "Gemm": ("octavo.QuantizedGemm", "gemm"),
}
"""Operator -> its quantized form, and the layout in which that reads its weight."""


def quantized(graph: Graph, parameters: Mapping[str, OpParameters]) -> Graph:
    """Return the graph with the named nodes quantized.

    Everything else is shared with the float graph.
    """
    lowering = _Lowering(graph)
    for node in graph.nodes:
        lowering.add(node, parameters.get(node.name))
    return fuse_requantization(lowering.graph())


class _Codes(NamedTuple):
    """A quantized value: its codes, their scale, and a bound of their magnitude."""

    codes: str
    scale: str
    largest: int


class _Lowering:
    """Builds the quantized graph, node by node."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._constants: dict[str, Array] = {}
        self._nodes: list[Node] = []
        self._written: set[str] = set()
        # Value and format -> its codes: a value is quantized once for all consumers of one format.
        self._codes: dict[tuple[object, ...], _Codes] = {}

    def add(self, node: Node, given: OpParameters | None) -> None:
        """Add a node of the float graph, in the form that its parameters ask for."""
        if given is None or given.scheme.is_float:
            self._append(node)
        elif given.scheme.mode != "weight_only":
            self._integer(node, given)
        elif node.op == "Gather":
            self._packed_embedding(node, given)
        else:
            self._packed_weight(node, given)

    def graph(self) -> Graph:
        """Return what was built, with the constants that it reads."""
        used = set(self._graph.outputs)
        for node in self._nodes:
            used.update(self._graph.reads(node))
        constants = {**self._graph.initializers, **self._constants}
        read = {name: array for name, array in constants.items() if name in used}
        return self._graph.with_(nodes=tuple(self._nodes), initializers=read)

    def _append(self, node: Node) -> None:
        self._nodes.append(node)
        self._written.update(node.outputs)

    def _append_float32(self, node: Node, dtype: str) -> None:
        """Add a node that computes in float32; a model of half precision keeps its type outside."""
        if dtype == "float32":
            self._append(node)
            return
        wide = f"{node.outputs[0]}.float32"
        self._append(node.with_(outputs=(wide,)))
        name = f"{node.name}.cast"
        self._append(Node("Cast", (wide,), node.outputs, name, {"to": dtype}))

    def _constant(self, name: str, array: Array | None) -> str:
        """Add a constant and return its name; '' for None."""
        if array is None:
            return ""
        self._constants[name] = array
        return name

    def _bias(self, node: Node, given: OpParameters) -> str:
        if given.bias is None:
            return node.input(2)
        return self._constant(f"{node.name}.bias", np.asarray(given.bias, np.float32))

    # Weights that stay packed.

    def _packed_embedding(self, node: Node, given: OpParameters) -> None:
        """Look rows up in a packed table, and unpack those alone."""
        assert given.weight is not None
        table, indices = node.inputs
        rows, inputs, prefix = self._packed_rows(node, given, table, 0)
        features = given.weight.shape[1]
        stored, levels = inputs[:4], inputs[4:]
        unpack = node.with_(
            op="octavo.DequantizeRows",
            inputs=(*stored, indices, *levels),
            attributes={**rows.attributes, "features": features},
        )
        dtype = self._dtype(table)
        if given.weight.repair is None:
            self._append_float32(unpack, dtype)
            return
        decoded = f"{node.name}.decoded"
        unpack = unpack.with_(outputs=(decoded,), name=f"{node.name}.dequantize")
        self._append_float32(unpack, dtype)
        left, right = self._factors(prefix, given.weight.repair)
        rows_of_left = self._step("Gather", f"{node.name}.left", (left, indices))
        product = self._product(f"{node.name}.repair", rows_of_left, right, dtype)
        self._append(node.with_(op="Add", inputs=(decoded, product), attributes={}))

    def _packed_weight(self, node: Node, given: OpParameters) -> None:
        """Keep the weight packed; a node before this one unpacks it, once for all that read it."""
        assert given.weight is not None
        weight = node.inputs[1]
        axis = channel_axis(node)
        rows, inputs, prefix = self._packed_rows(node, given, weight, axis)
        value = f"{prefix}.float"
        if value not in self._written:
            attributes = {
                **rows.attributes,
                "shape": given.weight.shape,
                "axis": axis,
            }
            name = f"{prefix}.dequantize"
            unpack = Node("octavo.Dequantize", inputs, (value,), name, attributes)
            self._append_float32(unpack, self._dtype(weight))
        if given.weight.repair is not None:
            value = self._repaired(value, prefix, given.weight.repair, weight)
        bias = self._bias(node, given)
        rest = (bias,) if bias or len(node.inputs) > 2 else ()
        self._append(node.with_(inputs=(node.inputs[0], value, *rest)))

    def _repaired(self, value: str, prefix: str, repair: Repair, weight: str) -> str:
        """Add a repair to a decoded weight, once for all that read it; return the sum's name."""
        result = f"{prefix}.repaired"
        if result in self._written:
            return result
        left, right = self._factors(prefix, repair)
        dtype = self._dtype(weight)
        product = self._product(f"{prefix}.repair", left, right, dtype)
        if repair.axis:
            turned = f"{prefix}.repair.turned"
            product = self._step("Transpose", turned, (product,), perm=(1, 0))
        return self._step("Add", result, (value, product))

    def _factors(self, prefix: str, repair: Repair) -> tuple[str, str]:
        """Register both factors, in the type in which they are stored."""
        return (
            self._constant(f"{prefix}.left", np.asarray(repair.left)),
            self._constant(f"{prefix}.right", np.asarray(repair.right)),
        )

    def _product(self, name: str, left: str, right: str, dtype: str) -> str:
        """Multiply two factors in float32 and return the result's name, in a type."""
        wide = [
            self._step("Cast", f"{name}.{side}", (factor,), to="float32")
            for side, factor in (("left", left), ("right", right))
        ]
        product = self._step("MatMul", name, tuple(wide))
        if dtype == "float32":
            return product
        return self._step("Cast", f"{name}.cast", (product,), to=dtype)

    def _step(
        self, op: str, name: str, inputs: tuple[str, ...], **attributes: object
    ) -> str:
        """Add a node of one result, both of that name; return it."""
        self._append(Node(op, inputs, (name,), name, attributes))
        return name

    def _packed_rows(
        self, node: Node, given: OpParameters, name: str, axis: int
    ) -> tuple[PackedRows, tuple[str, ...], str]:
        """Return a packed weight, the names of its constants, and how they begin."""
        weight = given.weight
        assert weight is not None
        rows: PackedRows = _packed.get(
            weight, ("rows", axis), lambda: pack_rows(weight, axis)
        )
        prefix = f"{name}.{given.scheme.weight}.{given.scheme.rounding}"
        known = self._constants.get(f"{prefix}.codes", rows.codes)
        if known is not rows.codes:
            # Another reader of the same weight may have codes of its own.
            prefix = f"{prefix}.{node.name}"
        inputs = (
            self._constant(f"{prefix}.codes", rows.codes),
            self._constant(f"{prefix}.scale", rows.scale),
            self._constant(f"{prefix}.zero_point", rows.zero),
            "",  # the table of the codes' numbers, which files of format 1 hold
        )
        if rows.steps is None:
            return rows, inputs, prefix
        levels = (
            self._constant(f"{prefix}.scale_steps", rows.steps),
            self._constant(f"{prefix}.scale_offsets", rows.offsets),
        )
        return rows, (*inputs, *levels), prefix

    def _dtype(self, name: str) -> str:
        return self._graph.initializers[name].dtype.name

    # Integer arithmetic.

    def _integer(self, node: Node, given: OpParameters) -> None:
        """Compute a node on the codes of its input and its weight."""
        weight = given.weight
        assert weight is not None
        x = self._quantized_input(node.inputs[0], given)
        op, layout = _QUANTIZED[node.op]
        packed: PackedWeight = _packed.get(weight, layout, lambda: pack(weight, layout))
        inputs = (
            x.codes,
            x.scale,
            self._constant(f"{node.name}.codes", packed.codes),
            self._constant(f"{node.name}.scale", packed.scale),
            self._constant(f"{node.name}.zero_point", packed.zero),
            self._bias(node, given),
        )
        attributes = {k: node.attributes[k] for k in _KEPT if k in node.attributes}
        attributes["largest"] = x.largest
        made = node.with_(op=op, inputs=inputs, attributes=attributes)
        self._append_float32(made, self._dtype(node.inputs[1]))

    def _quantized_input(self, value: str, given: OpParameters) -> _Codes:
        spec = given.scheme.input
        assert spec is not None
        if given.scheme.mode == "static":
            params = given.inputs[0]
            assert params is not None
            return self._static(value, spec, params)
        return self._dynamic(value, spec)

    def _static(self, value: str, spec: QuantSpec, params: QuantParams) -> _Codes:
        """Quantize a value with a scale that calibration found."""
        low, high = integer_range(spec)
        zero = int(params.zero_point)
        key = (value, float(params.scale), zero, low, high)
        if key not in self._codes:
            name = self._name_of_codes(value)
            number = np.asarray(params.scale, np.float32).reshape(())
            scale = self._constant(f"{name}.scale", number)
            point = self._constant(f"{name}.zero_point", np.asarray(zero, np.int32))
            inputs = (value, scale, point)
            attributes = {"low": low, "high": high}
            self._append(Node("octavo.Quantize", inputs, (name,), name, attributes))
            largest = max(zero - low, high - zero)
            self._codes[key] = _Codes(name, scale, largest)
        return self._codes[key]

    def _dynamic(self, value: str, spec: QuantSpec) -> _Codes:
        """Quantize a value with the scale of its own range."""
        low, high = integer_range(spec)
        key = (value, spec.symmetric, spec.granularity, low, high)
        if key not in self._codes:
            name = self._name_of_codes(value)
            scale = f"{name}.scale"
            attributes = {
                "low": low,
                "high": high,
                "symmetric": int(spec.symmetric),
                "granularity": spec.granularity,
            }
            outputs = (name, scale)
            self._append(
                Node("octavo.DynamicQuantize", (value,), outputs, name, attributes)
            )
            self._codes[key] = _Codes(name, scale, _largest(spec))
        return self._codes[key]

    def _name_of_codes(self, value: str) -> str:
        return f"{value}.codes{len(self._codes)}"


def _largest(spec: QuantSpec) -> int:
    """Bound |q - zero_point| where the zero point is found at run time."""
    low, high = integer_range(spec)
    if not spec.symmetric:
        return high - low
    middle = 0 if low < 0 else (low + high + 1) // 2
    return max(middle - low, high - middle)
