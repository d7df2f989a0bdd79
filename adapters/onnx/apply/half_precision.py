"""Half-precision islands: single ops in float16 or bfloat16 in a graph of float32."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir import DataType, Node, Value

from octavo.adapters.onnx.describe.site import Site
from octavo.adapters.onnx.prepare.constants import replace_input
from octavo.adapters.onnx.prepare.patterns import name_of, producer_at
from octavo.adapters.onnx.prepare.scopes import owner
from octavo.core.contract.adapter import OpParameters

from .editing import Editor
from .nodes import Emitted, declare, swap_names
from .packing import cached, tensor

HALVES: Mapping[str, DataType] = {
    "float16": DataType.FLOAT16,
    "bfloat16": DataType.BFLOAT16,
}


class Islands:
    """The islands of one graph, between Cast nodes.

    Args:
        editor: The graph's editor.
    """

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._narrow: dict[tuple[str, DataType], Node] = {}
        self._widen: set[Node] = set()

    def write(self, site: Site, params: OpParameters) -> Emitted:
        """Turn an op, with its bias and a fused ReLU, into an island of its own."""
        assert params.weight is not None
        half = params.weight.params.spec.dtype
        dtype = HALVES[half]
        e = self._editor
        main = e.nodes[site.name]
        for position, index in enumerate(site.inputs):
            name = name_of(site.input_value(position))
            main.replace_input_with(index, self._narrowed(name, dtype))
        self._write_weight(site, params)
        before = e.nodes[site.before_activation.name or ""]
        self._write_bias(site, params, main, before)
        # A Clip has limits in float32, and stays behind the island.
        if site.activation == "relu":
            last = e.nodes[site.last.name or ""]
        else:
            last = before
        for node in (main, before, last):
            node.outputs[0].type = ir.TensorType(dtype)
        self._widened(last)
        return Emitted(main.name or "", half)

    def _write_weight(self, site: Site, params: OpParameters) -> None:
        weight, e = params.weight, self._editor
        assert weight is not None
        assert site.weight is not None
        half = weight.params.spec.dtype
        dtype = HALVES[half]
        held = cached(weight, "half", lambda: tensor(weight.codes, dtype, "weight"))
        value = e.shared(f"{site.held.name}_{half}", held)
        e.nodes[site.name].replace_input_with(site.weight, value)

    def _write_bias(
        self, site: Site, params: OpParameters, main: Node, before: Node
    ) -> None:
        """Write the bias as an input of the op, or of the Add behind it."""
        e = self._editor
        bias = e.bias(site, params)
        if bias is None:
            return
        assert params.weight is not None
        dtype = HALVES[params.weight.params.spec.dtype]
        held = tensor(bias, dtype, "bias")
        value = e.initializer(f"{site.name}_bias", held)
        if before is main:
            replace_input(main, 2, value)
            return
        is_first = before.inputs[0] is main.outputs[0]
        before.replace_input_with(1 if is_first else 0, value)

    def _narrowed(self, name: str, dtype: DataType) -> Value:
        key = (name, dtype)
        if key not in self._narrow:
            value = self._editor.current(name)
            half = dtype.name.lower()
            to_half = {"to": dtype.value}
            node = ir.node("Cast", [value], to_half, name=f"{name}_to_{half}")
            result = node.outputs[0]
            declare(result, f"{name}_{half}", dtype, value.shape)
            self._editor.after(value, [node])
            self._narrow[key] = node
        return self._narrow[key].outputs[0]

    def _widened(self, last: Node) -> None:
        """Give whoever reads an island's last node its result in float32."""
        half = last.outputs[0]
        to_float = {"to": DataType.FLOAT.value}
        node = ir.node("Cast", [half], to_float, name=f"{last.name}_to_float")
        result = node.outputs[0]
        result.type = ir.TensorType(DataType.FLOAT)
        result.shape = half.shape
        half.replace_all_uses_with(result, replace_graph_outputs=True)
        node.replace_input_with(0, half)
        owner(last).insert_after(last, [node])
        swap_names(result, half, "half")
        self._editor.values[result.name or ""] = result
        self._widen.add(node)

    def join(self) -> None:
        """Merge islands of one type that touch.

        Numbers of 16 bits pass from one to the next without a Cast.
        """
        for (_, dtype), narrow in self._narrow.items():
            wide = narrow.inputs[0]
            widen = producer_at(narrow, 0)
            if wide is None or widen is None or widen not in self._widen:
                continue
            half = widen.inputs[0]
            if half is None or half.dtype != dtype:
                continue
            narrow.outputs[0].replace_all_uses_with(half)
            owner(narrow).remove(narrow, safe=True)
            if not wide.uses() and not wide.is_graph_output():
                owner(widen).remove(widen, safe=True)
