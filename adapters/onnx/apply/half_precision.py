"""Half-precision islands: single ops in float16 or bfloat16 between Cast nodes, in a graph that is float32 elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from octavo.adapters.onnx.describe.sites import Site
from octavo.adapters.onnx.prepare.scopes import owner
from octavo.core.contract.adapter import OpParameters

from .packing import cached, tensor

if TYPE_CHECKING:
    from .editing import Editor

HALVES: Mapping[str, ir.DataType] = {
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}

_INSERTED = "InsertedPrecisionFreeCast_"
"""How ONNX Runtime names the values around a node that it computes in float32 because it has no half-precision kernel."""


class Islands:
    """The islands of one graph.

    Args:
        editor: The graph's editor.
    """

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._narrow: dict[tuple[str, ir.DataType], ir.Node] = {}
        self._widen: set[ir.Node] = set()

    def write(self, site: Site, params: OpParameters) -> tuple[str, str]:
        """Turn an op, with its bias and a fused ReLU, into an island of its own; return its node's name and its value's."""
        e, weight, main = self._editor, params.weight, self._editor.nodes[site.op.name]
        assert weight is not None
        assert site.op.weight is not None
        assert site.weight is not None
        dtype = HALVES[weight.params.spec.dtype]
        for index in site.inputs:
            original = site.node.inputs[index]
            assert original is not None
            main.replace_input_with(index, self._narrowed(original.name or "", dtype))
        held = cached(weight, "half", lambda: tensor(weight.codes, dtype, "weight"))
        main.replace_input_with(
            site.weight, e.shared(f"{site.op.weight.name}_{weight.params.spec.dtype}", held)
        )
        before = e.nodes[site.before_activation.name or ""]
        bias = e.bias(site, params)
        if bias is not None:
            value = e.initializer(f"{site.op.name}_bias", tensor(bias, dtype, "bias"))
            if before is main:
                main.resize_inputs(max(3, len(main.inputs)))
                main.replace_input_with(2, value)
            else:
                before.replace_input_with(1 if before.inputs[0] is main.outputs[0] else 0, value)
        last = e.nodes[site.last.name or ""] if site.activation == "relu" else before
        for node in (main, before, last):
            node.outputs[0].type = ir.TensorType(dtype)
        self._widened(last)
        return main.name or "", main.outputs[0].name or ""

    def _narrowed(self, name: str, dtype: ir.DataType) -> ir.Value:
        key = (name, dtype)
        if key not in self._narrow:
            value = self._editor.current(name)
            node = ir.node(
                "Cast", [value], {"to": dtype.value}, name=f"{name}_to_{dtype.name.lower()}"
            )
            result = node.outputs[0]
            result.name, result.type, result.shape = (
                f"{name}_{dtype.name.lower()}",
                ir.TensorType(dtype),
                value.shape,
            )
            self._editor.after(value, [node])
            self._narrow[key] = node
        return self._narrow[key].outputs[0]

    def _widened(self, last: ir.Node) -> None:
        e, half = self._editor, last.outputs[0]
        node = ir.node(
            "Cast", [half], {"to": ir.DataType.FLOAT.value}, name=f"{last.name}_to_float"
        )
        result = node.outputs[0]
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), half.shape
        half.replace_all_uses_with(result, replace_graph_outputs=True)
        node.replace_input_with(0, half)
        owner(last).insert_after(last, [node])
        name = half.name or ""
        result.name, half.name = name, f"{name}_half"
        e.values[name] = result
        self._widen.add(node)

    def join(self) -> None:
        """Merge islands of one type that touch: numbers of 16 bits pass from one to the next without a Cast."""
        for (_, dtype), node in self._narrow.items():
            wide = node.inputs[0]
            producer = wide.producer() if wide is not None else None
            if wide is None or producer not in self._widen or producer is None:
                continue
            half = producer.inputs[0]
            if half is None or half.dtype != dtype:
                continue
            node.outputs[0].replace_all_uses_with(half)
            owner(node).remove(node, safe=True)
            if not wide.uses() and not wide.is_graph_output():
                owner(producer).remove(producer, safe=True)


def runs_in_half(node: onnx.NodeProto) -> bool:
    """True if a node of an optimized graph has no Cast of ONNX Runtime's own making around it."""
    return not any(name.startswith(_INSERTED) for name in (*node.input, *node.output))
