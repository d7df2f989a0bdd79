"""Half-precision islands: single ops in float16 or bfloat16 in a graph of float32."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir import DataType, Node, TensorType, Value

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
        before = self._own(site.before_activation)
        self._write_bias(site, params, before)
        last = before
        # A Clip has limits in float32, and stays behind the island.
        if site.activation == "relu":
            last = self._own(site.last)
        for node in (main, before, last):
            result = node.outputs[0]
            result.type = TensorType(dtype)
        self._widened(last)
        return Emitted(main.name or "", half)

    def _own(self, node: Node) -> Node:
        """Return the editor's node for one of the prepared model."""
        return self._editor.nodes[node.name or ""]

    def _write_weight(self, site: Site, params: OpParameters) -> None:
        e = self._editor
        weight = params.weight
        assert weight is not None
        assert site.weight is not None
        half = weight.params.spec.dtype
        dtype = HALVES[half]
        held = cached(weight, "half", lambda: tensor(weight.codes, dtype, "weight"))
        value = e.shared(f"{site.held.name}_{half}", held)
        e.nodes[site.name].replace_input_with(site.weight, value)

    def _write_bias(self, site: Site, params: OpParameters, before: Node) -> None:
        """Write the bias as an input of the op, or of the Add behind it."""
        e = self._editor
        bias = e.bias(site, params)
        if bias is None:
            return
        assert params.weight is not None
        half = params.weight.params.spec.dtype
        held = tensor(bias, HALVES[half], "bias")
        value = e.initializer(f"{site.name}_bias", held)
        main = e.nodes[site.name]
        if before is main:
            replace_input(main, 2, value)
            return
        # Models add the bias to the product or the product to the bias.
        is_product_first = before.inputs[0] is main.outputs[0]
        place = 1 if is_product_first else 0
        before.replace_input_with(place, value)

    def _narrowed(self, name: str, dtype: DataType) -> Value:
        """Return a value in half precision, cast once for all islands that read it."""
        key = (name, dtype)
        if key not in self._narrow:
            self._narrow[key] = self._cast_to_half(name, dtype)
        cast = self._narrow[key]
        return cast.outputs[0]

    def _cast_to_half(self, name: str, dtype: DataType) -> Node:
        value = self._editor.current(name)
        half = dtype.name.lower()
        to_half = {"to": dtype.value}
        cast = ir.node("Cast", [value], to_half, name=f"{name}_to_{half}")
        result = cast.outputs[0]
        declare(result, f"{name}_{half}", dtype, value.shape)
        self._editor.after(value, [cast])
        return cast

    def _widened(self, last: Node) -> None:
        """Give whoever reads an island's last node its result in float32."""
        half = last.outputs[0]
        to_float = {"to": DataType.FLOAT.value}
        cast = ir.node("Cast", [half], to_float, name=f"{last.name}_to_float")
        result = cast.outputs[0]
        result.type = TensorType(DataType.FLOAT)
        result.shape = half.shape
        half.replace_all_uses_with(result, replace_graph_outputs=True)
        # The Cast itself reads the half-precision value, and must go on to do so.
        cast.replace_input_with(0, half)
        graph = owner(last)
        graph.insert_after(last, [cast])
        swap_names(result, half, "half")
        name = name_of(result)
        self._editor.values[name] = result
        self._widen.add(cast)

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
            narrowed = narrow.outputs[0]
            narrowed.replace_all_uses_with(half)
            owner(narrow).remove(narrow, safe=True)
            # Others may read it in float32 still.
            is_read = bool(wide.uses()) or wide.is_graph_output()
            if not is_read:
                owner(widen).remove(widen, safe=True)
