"""The QOperator form: one integer operator where QDQ writes a float operator between pairs.

Older runtimes and tools that fuse no pairs read it. Operators: QLinearConv and QLinearMatMul of the
ONNX standard (opset 10); QLinearAdd, QLinearMul, QLinearConcat, QLinearSigmoid, QLinearLeakyRelu,
QLinearSoftmax, QLinearAveragePool, QLinearGlobalAveragePool, QGemm and MatMulIntegerToFloat of
com.microsoft (ONNX Runtime's ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType, Graph, Model, Node, Value
from onnx_ir.passes import common as passes

from octavo.adapters.onnx.describe.carriers import CARRIERS
from octavo.adapters.onnx.prepare.constants import drop_unused_initializers, register
from octavo.adapters.onnx.prepare.patterns import (
    input_at,
    is_standard,
    only_use,
    producer_of,
)
from octavo.adapters.onnx.prepare.scopes import owner, walk

from .finishing import import_runtime_domain
from .nodes import MS, declare_like, swap_names, without_trailing_gaps
from .packing import tensor

_BYTES = (DataType.UINT8, DataType.INT8)

_ZERO = "octavo/int8_zero_point"
"""How names of zero points begin that signed bytes share."""


@dataclass(frozen=True, slots=True)
class _Operand:
    """A quantized value: codes with their scale and zero point (None where it is 0)."""

    codes: Value
    scale: Value
    zero: Value | None

    def triple(self) -> list[Value | None]:
        """Return what integer operators take, most of which want a zero point in any case."""
        zero = self.zero
        if zero is None and self.codes.dtype == DataType.INT8:
            zero = _zero_beside(self.codes, self.scale)
        return [self.codes, self.scale, zero]

    @property
    def is_bytes(self) -> bool:
        return self.codes.dtype in _BYTES


@dataclass(frozen=True, slots=True)
class _Result:
    """Where an op's result is quantized: the QuantizeLinear, and what lies before it."""

    quantizer: Node
    between: Sequence[Node]

    def pair(self) -> list[Value | None]:
        return [self.quantizer.inputs[1], self.quantizer.inputs[2]]


_Writer = Callable[[Node, Sequence[_Operand], _Result], Node | None]


def to_operators(model: Model, ops: Iterable[str]) -> dict[str, str]:
    """Write the static ops of a QDQ model as integer operators, in place.

    Args:
        model: As ``emit`` returns it.
        ops: Names of the main nodes of static ops.

    Returns:
        Name of a node -> why it keeps its QuantizeLinear and DequantizeLinear.
    """
    graph = model.graph
    kept: dict[str, str] = {}
    nodes = {node.name or "": node for node in walk(graph)}
    for name in ops:
        node = nodes[name]
        is_written = node.domain == MS or _write(owner(node), node)
        if not is_written:
            kept[name] = (
                f"ONNX Runtime has no QOperator form of this {node.op_type}: "
                "QuantizeLinear and DequantizeLinear stay around it"
            )
    for node in list(walk(graph)):
        if is_standard(node, *CARRIERS):
            _carry(owner(node), node)
    passes.RemoveUnusedNodesPass()(model)
    drop_unused_initializers(graph)
    import_runtime_domain(graph)
    return kept


def _write(graph: Graph, node: Node) -> bool:
    """Put an integer operator in a node's place; False where there is none."""
    given = [_dequantized(v) for v in node.inputs]
    if not given or given[0] is None or not given[0].is_bytes:
        return False
    result = _quantized(node)
    if node.op_type in ("MatMul", "Gemm"):
        # A product with a ReLU behind it is written as one whose result stays float.
        if result is not None and result.between:
            result = None
        made = _product(node, given, result)
    elif result is not None and node.op_type in _WRITERS:
        write = _WRITERS[node.op_type]
        made = write(node, [g for g in given if g is not None], result)
    else:
        made = None
    if made is None:
        return False
    _put_in_place(graph, node, made, result)
    return True


def _put_in_place(graph: Graph, node: Node, made: Node, result: _Result | None) -> None:
    """Let an operator take the place of a node and of all up to its QuantizeLinear."""
    made.name = node.name
    replaced = [node]
    if result is not None:
        replaced = [result.quantizer, *reversed(result.between), node]
    old = replaced[0].outputs[0]
    new = made.outputs[0]
    graph.insert_before(node, [made])
    declare_like(new, old)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    swap_names(new, old, "replaced")
    graph.remove(replaced, safe=True)


def _dequantized(value: Value | None) -> _Operand | None:
    node = producer_of(value)
    if not is_standard(node, "DequantizeLinear"):
        return None
    codes = node.inputs[0]
    scale = node.inputs[1]
    assert codes is not None and scale is not None
    return _Operand(codes, scale, input_at(node, 2))


def _quantized(node: Node) -> _Result | None:
    """Return where the op's only reader quantizes its result.

    A ReLU that the codes' own range carries out may lie between.
    """
    user = _only_reader(node)
    if is_standard(user, "QuantizeLinear"):
        return _Result(user, [])
    if not is_standard(user, "Relu"):
        return None
    quantizer = _only_reader(user)
    if not is_standard(quantizer, "QuantizeLinear") or not _begins_at_zero(quantizer):
        return None
    return _Result(quantizer, [user])


def _only_reader(node: Node) -> Node | None:
    """Return the standard operator that alone reads a node's first output."""
    use = only_use(node.outputs[0])
    if use is None:
        return None
    user, _ = use
    if user.domain == "":
        return user
    return None


def _begins_at_zero(quantizer: Node) -> bool:
    """True if the lowest code stands for 0, so that quantizing does what a ReLU does."""
    zero = quantizer.inputs[2]
    if zero is None or zero.const_value is None:
        return False
    held = zero.const_value.numpy()
    lowest = np.iinfo(held.dtype).min
    return bool(np.all(held == lowest))


def _zero_beside(codes: Value, scale: Value) -> Value:
    """Return zero points of 0 as many as scales, one tensor for all of a graph that need so many.

    QLinearConv would take one for all, QGemm does not.
    """
    graph = codes.graph
    assert isinstance(graph, Graph) and scale.shape is not None
    shape = scale.shape.numpy()
    name = "_".join((_ZERO, *map(str, shape)))
    if name not in graph.initializers:
        register(graph, name, tensor(np.zeros(shape), DataType.INT8, name))
    return graph.initializers[name]


def _product(
    node: Node, given: Sequence[_Operand | None], result: _Result | None
) -> Node | None:
    """Return the operator of a product; one whose result stays float has a name of its own."""
    a, b = given[0], given[1]
    if a is None or b is None:
        return None
    if result is not None:
        ends = result.pair()
    else:
        ends = []
    factors = a.triple() + b.triple()
    if node.op_type == "Gemm":
        return _gemm(node, given, factors, ends)
    if ends:
        return ir.node("QLinearMatMul", factors + ends)
    inputs = [a.codes, b.codes, a.scale, b.scale, a.zero, b.zero]
    return ir.node("MatMulIntegerToFloat", inputs, domain=MS)


_Inputs = Sequence[Value | None]


def _gemm(
    node: Node, given: Sequence[_Operand | None], factors: _Inputs, ends: _Inputs
) -> Node | None:
    """Return QGemm; it takes an int32 bias, and no scale where its result stays float."""
    bias = None
    if len(given) > 2:
        if given[2] is None:
            return None
        bias = given[2].codes
    inputs = without_trailing_gaps([*factors, bias, *ends])
    names = ("alpha", "transA", "transB")
    kept = [node.attributes[name] for name in names if name in node.attributes]
    return Node(MS, "QGemm", inputs, kept)


def _convolution(node: Node, given: Sequence[_Operand], result: _Result) -> Node | None:
    x, weight, *bias = given
    inputs = x.triple() + weight.triple() + result.pair()
    inputs += [operand.codes for operand in bias]
    return Node("", "QLinearConv", inputs, list(node.attributes.values()))


def _elementwise(node: Node, given: Sequence[_Operand], result: _Result) -> Node | None:
    """Return an operator that takes each input with its scale and zero point, then the result's."""
    inputs = _triples(node, given)
    if inputs is None:
        return None
    attributes = list(node.attributes.values())
    if node.op_type == "Softmax":
        # Softmax over an axis means something else before opset 13; the kernel asks which.
        opset = owner(node).opset_imports[""]
        attributes.append(ir.AttrInt64("opset", opset))
    inputs += result.pair()
    return Node(MS, f"QLinear{node.op_type}", inputs, attributes)


def _concat(node: Node, given: Sequence[_Operand], result: _Result) -> Node | None:
    inputs = _triples(node, given)
    if inputs is None:
        return None
    attributes = list(node.attributes.values())
    return Node(MS, "QLinearConcat", result.pair() + inputs, attributes)


def _triples(node: Node, given: Sequence[_Operand]) -> list[Value | None] | None:
    """Return all inputs with scale and zero point; None where one is no codes."""
    if len(given) != len(node.inputs):
        return None
    triples: list[Value | None] = []
    for operand in given:
        triples += operand.triple()
    return triples


_WRITERS: Mapping[str, _Writer] = {
    "Conv": _convolution,
    "Concat": _concat,
    "Add": _elementwise,
    "Mul": _elementwise,
    "Sigmoid": _elementwise,
    "LeakyRelu": _elementwise,
    "Softmax": _elementwise,
    "AveragePool": _elementwise,
    "GlobalAveragePool": _elementwise,
}


def _carry(graph: Graph, node: Node) -> None:
    """Let an op that only moves values move codes."""
    given = _dequantized(node.inputs[0])
    result = _quantized(node)
    if given is None or result is None or result.between or not given.is_bytes:
        return
    if result.pair() != [given.scale, given.zero]:
        return
    moved = node.outputs[0]
    old = result.quantizer.outputs[0]
    node.replace_input_with(0, given.codes)
    old.replace_all_uses_with(moved, replace_graph_outputs=True)
    dtype = old.type
    swap_names(moved, old, "replaced")
    graph.remove(result.quantizer, safe=True)
    moved.type = dtype
