"""Low-rank repairs: two thin products in float beside an op whose weight is stored in codes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType, Node, Value

from octavo.adapters.onnx.describe.site import Site
from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.adapters.onnx.prepare.scopes import owner
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.low_rank import Repair
from octavo.core.numerics.tensor import QuantizedTensor

from .editing import Editor
from .nodes import declare
from .packing import cached, tensor

_TYPES = {
    "float16": DataType.FLOAT16,
    "bfloat16": DataType.BFLOAT16,
    "float32": DataType.FLOAT,
}


def add_repair(e: Editor, site: Site, params: OpParameters, main: Node) -> None:
    """Add what an op's repair makes of its input to what its codes make of it.

    A product becomes y + (x A^T) B^T, a look-up y + B[ids] A. The factors stay in the file as they
    are stored, and tied ops share them: ONNX Runtime casts and turns them once, when it loads the
    model.

    Args:
        e: The graph, with the op written by its codes.
        site: The op.
        params: Its weight; nothing is done where that has no repair.
        main: The node that multiplies by the codes, or looks them up.
    """
    weight = params.weight
    if weight is None or weight.repair is None:
        return
    steps = _Steps(site.name)
    left, right = _factors(e, site, weight, weight.repair)
    if site.kind == "embedding":
        ids = site.node.inputs[1]
        assert ids is not None
        rows = steps.add("Gather", left, e.values[name_of(ids)])
        rows.type = left.type
        product = steps.add("MatMul", steps.as_float(rows), steps.as_float(right))
    else:
        x = e.current(name_of(site.input_value(0)))
        narrow = steps.add("MatMul", x, steps.turned(right))
        product = steps.add("MatMul", narrow, steps.turned(left))
    y = main.outputs[0]
    result = steps.add("Add", y, product)
    owner(main).insert_after(main, steps.nodes)
    e.take_over(result, y)
    # The sum took over from what it reads: that comes from the codes as before.
    steps.nodes[-1].replace_input_with(0, y)


def _factors(
    e: Editor, site: Site, weight: QuantizedTensor, repair: Repair
) -> tuple[Value, Value]:
    """Register both factors, once for all ops that share the weight."""
    kind = _TYPES[np.asarray(repair.left).dtype.name]
    name = site.held.name
    left = cached(weight, "left", lambda: tensor(repair.left, kind, "left"))
    right = cached(weight, "right", lambda: tensor(repair.right, kind, "right"))
    return e.shared(f"{name}_left", left), e.shared(f"{name}_right", right)


class _Steps:
    """Nodes in the order in which they are made, named after an op.

    Args:
        op: Its name.

    Attributes:
        nodes: What was made.
    """

    def __init__(self, op: str) -> None:
        self.nodes: list[Node] = []
        self._op = op

    def add(self, op_type: str, *inputs: Value, **attributes: int) -> Value:
        """Make a node; return its result, which is float32 unless said otherwise."""
        name = f"{self._op}_repair_{len(self.nodes)}"
        node = ir.node(op_type, inputs, attributes or None, name=name)
        self.nodes.append(node)
        return declare(node.outputs[0], f"{name}_output", DataType.FLOAT)

    def as_float(self, value: Value) -> Value:
        """Return a value in float32."""
        if value.dtype == DataType.FLOAT:
            return value
        return self.add("Cast", value, to=DataType.FLOAT.value)

    def turned(self, factor: Value) -> Value:
        """Return a factor in float32 with its axes swapped."""
        return self.add("Transpose", self.as_float(factor))
