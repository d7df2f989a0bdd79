"""The QOperator form: one integer operator where QDQ writes DequantizeLinear, float operator, QuantizeLinear.

Older runtimes and tools that fuse no pairs read it. Operators: QLinearConv and QLinearMatMul of the ONNX standard (opset 10);
QLinearAdd, QLinearMul, QLinearConcat, QLinearSigmoid, QLinearLeakyRelu, QLinearSoftmax, QLinearAveragePool,
QLinearGlobalAveragePool, QGemm and MatMulIntegerToFloat of com.microsoft (ONNX Runtime's ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from octavo.adapters.onnx.describe.sites import CARRIERS
from octavo.adapters.onnx.prepare.folding import drop_unused_initializers
from octavo.adapters.onnx.prepare.scopes import owner, walk

from .weight_only import MS

_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


@dataclass(frozen=True, slots=True)
class _Codes:
    """A quantized value: codes with their scale and zero point (None for int32 biases)."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None

    def triple(self) -> list[ir.Value | None]:
        return [self.codes, self.scale, self.zero]


@dataclass(frozen=True, slots=True)
class _Result:
    """Where an op's result is quantized: the QuantizeLinear, and what lies between the op and it."""

    quantizer: ir.Node
    between: Sequence[ir.Node]

    def pair(self) -> list[ir.Value | None]:
        return [self.quantizer.inputs[1], self.quantizer.inputs[2]]


def to_operators(model: ir.Model, ops: Iterable[str]) -> dict[str, str]:
    """Write the static ops of a QDQ model as integer operators, in place.

    Args:
        model: As ``emit`` returns it.
        ops: Names of the main nodes of static ops.

    Returns:
        Name of a node -> why it keeps its QuantizeLinear and DequantizeLinear.
    """
    graph, kept = model.graph, {}
    nodes = {node.name or "": node for node in walk(graph)}
    for name in ops:
        node = nodes[name]
        if node.domain != MS and not _write(owner(node), node):
            kept[name] = (
                f"ONNX Runtime has no QOperator form of this {node.op_type}: QuantizeLinear and DequantizeLinear stay around it"
            )
    for node in [n for n in walk(graph) if n.op_type in CARRIERS and n.domain == ""]:
        _carry(owner(node), node)
    passes.RemoveUnusedNodesPass()(model)
    drop_unused_initializers(graph)
    if any(node.domain == MS for node in walk(graph)):
        graph.opset_imports.setdefault(MS, 1)
    return kept


def _write(graph: ir.Graph, node: ir.Node) -> bool:
    given = [_dequantized(v) for v in node.inputs]
    if not given or given[0] is None or given[0].codes.dtype not in _BYTES:
        return False
    writer = _WRITERS.get(node.op_type)
    result = _quantized(node)
    if node.op_type in ("MatMul", "Gemm"):
        made = _product(node, given, result)
        if result is not None and result.between:
            result = None
    else:
        made = (
            writer(node, [g for g in given if g is not None], result)
            if writer is not None and result is not None
            else None
        )
    if made is None:
        return False
    made.name = node.name
    end = result.quantizer if result is not None else node
    old, new = end.outputs[0], made.outputs[0]
    graph.insert_before(node, [made])
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, f"{old.name}_replaced"
    graph.remove(
        [
            end,
            *(reversed(result.between) if result is not None else ()),
            *([node] if end is not node else []),
        ],
        safe=True,
    )
    return True


def _dequantized(value: ir.Value | None) -> _Codes | None:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    codes, scale = node.inputs[0], node.inputs[1]
    assert codes is not None and scale is not None
    return _Codes(codes, scale, node.inputs[2] if len(node.inputs) > 2 else None)


def _quantized(node: ir.Node) -> _Result | None:
    """Return where the op's only reader quantizes its result, past a ReLU that the codes' own range carries out."""
    between: list[ir.Node] = []
    while True:
        value = (between or [node])[-1].outputs[0]
        uses = tuple(value.uses())
        if len(uses) != 1 or value.is_graph_output() or uses[0][0].domain != "":
            return None
        user = uses[0][0]
        if user.op_type == "QuantizeLinear":
            zero = user.inputs[2]
            held = (
                zero.const_value.numpy()
                if zero is not None and zero.const_value is not None
                else None
            )
            if between and (held is None or np.any(held != np.iinfo(held.dtype).min)):
                return None
            return _Result(user, between)
        if user.op_type != "Relu" or between:
            return None
        between.append(user)


def _product(
    node: ir.Node, given: Sequence[_Codes | None], result: _Result | None
) -> ir.Node | None:
    """QGemm takes an int32 bias, and no scale where its result stays float; a MatMul whose result does has another name."""
    a, b = given[0], given[1]
    if a is None or b is None:
        return None
    if node.op_type == "Gemm":
        bias = given[2] if len(given) > 2 else None
        ends = result.pair() if result is not None and not result.between else []
        if len(given) > 2 and bias is None:
            return None
        kept = [node.attributes[k] for k in ("alpha", "transA", "transB") if k in node.attributes]
        return ir.Node(
            MS,
            "QGemm",
            _trimmed([*a.triple(), *b.triple(), bias.codes if bias is not None else None, *ends]),
            kept,
        )
    if result is not None and not result.between:
        return ir.node("QLinearMatMul", [*a.triple(), *b.triple(), *result.pair()])
    return ir.node(
        "MatMulIntegerToFloat", [a.codes, b.codes, a.scale, b.scale, a.zero, b.zero], domain=MS
    )


def _trimmed(inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def _convolution(node: ir.Node, given: Sequence[_Codes], result: _Result) -> ir.Node | None:
    inputs = [*given[0].triple(), *given[1].triple(), *result.pair()]
    if len(given) > 2:
        inputs.append(given[2].codes)
    return ir.Node("", "QLinearConv", inputs, list(node.attributes.values()))


def _elementwise(op_type: str) -> Callable[[ir.Node, Sequence[_Codes], _Result], ir.Node | None]:
    """An operator that takes each input with its scale and zero point, then those of the result."""

    def write(node: ir.Node, given: Sequence[_Codes], result: _Result) -> ir.Node | None:
        if len(given) != len(node.inputs):
            return None
        inputs = [v for g in given for v in g.triple()]
        attributes = list(node.attributes.values())
        if op_type == "QLinearSoftmax":
            attributes.append(ir.AttrInt64("opset", owner(node).opset_imports[""]))
        return ir.Node(MS, op_type, [*inputs, *result.pair()], attributes)

    return write


def _concat(node: ir.Node, given: Sequence[_Codes], result: _Result) -> ir.Node | None:
    if len(given) != len(node.inputs):
        return None
    return ir.Node(
        MS,
        "QLinearConcat",
        [*result.pair(), *(v for g in given for v in g.triple())],
        list(node.attributes.values()),
    )


_WRITERS: Mapping[str, Callable[[ir.Node, Sequence[_Codes], _Result], ir.Node | None]] = {
    "Conv": _convolution,
    "Concat": _concat,
    **{
        kind: _elementwise(f"QLinear{kind}")
        for kind in (
            "Add",
            "Mul",
            "Sigmoid",
            "LeakyRelu",
            "Softmax",
            "AveragePool",
            "GlobalAveragePool",
        )
    },
}


def _carry(graph: ir.Graph, node: ir.Node) -> None:
    """Let an op that only moves values move codes."""
    given, result = _dequantized(node.inputs[0]), _quantized(node)
    if (
        given is None
        or result is None
        or result.between
        or result.pair() != [given.scale, given.zero]
        or given.codes.dtype not in _BYTES
    ):
        return
    moved, old = node.outputs[0], result.quantizer.outputs[0]
    node.replace_input_with(0, given.codes)
    old.replace_all_uses_with(moved, replace_graph_outputs=True)
    name, old.name = old.name, f"{old.name}_replaced"
    graph.remove(result.quantizer, safe=True)
    moved.name, moved.type = name, old.type
