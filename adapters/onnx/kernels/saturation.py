"""Whether ONNX Runtime's 8-bit products saturate on this processor, and what keeps models right.

x86 processors before VNNI multiply bytes with ``vpmaddubsw``: two neighbouring products, of an
unsigned and a signed byte each, are added in 16 bits *with saturation*. Weights that keep to seven
bits cannot reach its end (255 * 64 * 2 = 32640). Nor do unsigned weights: for those the runtime
widens both operands first. (ONNX Runtime's documentation, "Quantize ONNX models", section on U8S8
and reduce_range.)
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx_ir import DataType, Model, Node, Value
from onnx_ir.traversal import RecursiveGraphIterator

from octavo.adapters.onnx.prepare.opset import as_model
from octavo.adapters.onnx.prepare.patterns import input_at
from octavo.core.numerics.saturation import REACH, REASON
from octavo.core.values.scheme import OpScheme

WIDENED = (
    "its weight uses all 8 bits, whose signed products this CPU adds in 16 bits (no VNNI): "
    "it is held as unsigned bytes around 128, the same numbers on another kernel"
)

_MIDDLE = 128
"""From a signed byte to the unsigned one of the same order."""

_HELD: dict[str, tuple[tuple[int, int], ...]] = {
    "DequantizeLinear": ((0, 2),),
    "MatMulInteger": ((1, 3),),
    "MatMulIntegerToFloat": ((1, 5),),
    "ConvInteger": ((1, 3),),
    "QLinearConv": ((3, 5),),
    "QLinearMatMul": ((3, 5),),
    "QGemm": ((3, 5),),
    "DynamicQuantizeMatMul": ((1, 3),),
    "DynamicQuantizeLSTM": ((1, 9), (2, 11)),
}
"""Op type -> where its weights stand, and each one's zero point.

Source: operator specifications of ONNX and com.microsoft.
"""


def is_signed_product(scheme: OpScheme) -> bool:
    """Return whether a scheme multiplies 8-bit inputs by signed 8-bit weights.

    Of weights that share scales by channel or tensor: those in groups have kernels of their own.
    """
    weight, x = scheme.weight, scheme.input
    if weight is None or x is None or scheme.mode not in ("static", "dynamic"):
        return False
    return weight.dtype == "int8" and weight.group_size is None and x.bits == 8


@lru_cache
def saturates(providers: tuple[str, ...]) -> str:
    """Return why signed weights must keep to seven bits with these providers.

    Empty where whole bytes are summed right.
    """
    if providers != ("CPUExecutionProvider",):
        return ""
    rows, features, outputs = 8, 64, 32
    # The largest bytes that there are: the sum of two of their products, 64,770, does not fit 16
    # bits.
    x = np.full((rows, features), 255, np.uint8)
    w = np.full((features, outputs), 127, np.int8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    message = _product_of(w, rows).SerializeToString()
    session = ort.InferenceSession(message, options, providers=list(providers))
    (y,) = session.run(None, {"x": x})
    if np.all(y == 255 * 127 * features):
        return ""
    return REASON


def _product_of(w: np.ndarray, rows: int) -> onnx.ModelProto:
    """Return a model that multiplies unsigned bytes ``x`` by a constant of signed ones."""
    features, outputs = w.shape
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, (rows, features))]
    results = [helper.make_tensor_value_info("y", TensorProto.INT32, (rows, outputs))]
    held = [numpy_helper.from_array(w, "w")]
    graph = helper.make_graph([node], "extremes", inputs, results, held)
    return as_model(graph)


def widen_weights(model: Model) -> int:
    """Write signed weights that would saturate as unsigned bytes around 128.

    The same numbers, on a kernel that does not saturate.

    Args:
        model: Changed in place.

    Returns:
        At how many places a weight was rewritten.
    """
    made: dict[Value, Value] = {}
    rewritten = 0
    for node in RecursiveGraphIterator(model.graph):
        for at, zero_at in _HELD.get(node.op_type, ()):
            rewritten += _widen(node, at, zero_at, made)
    return rewritten


def _widen(node: Node, at: int, zero_at: int, made: dict[Value, Value]) -> bool:
    """Exchange a weight and its zero point; what was made of them before is used again."""
    weight = input_at(node, at)
    if weight is None or not _out_of_reach(weight):
        return False
    zero = input_at(node, zero_at)
    if zero is not None and zero.const_value is None:
        return False  # a zero point that is computed cannot be moved along
    for value in (weight, zero):
        if value is not None and value not in made:
            made[value] = _unsigned(value)
    length = max(len(node.inputs), zero_at + 1)
    node.resize_inputs(length)
    node.replace_input_with(at, made[weight])
    moved = _middle(weight, node) if zero is None else made[zero]
    node.replace_input_with(zero_at, moved)
    return True


def _out_of_reach(value: Value) -> bool:
    tensor = value.const_value
    if tensor is None or not value.is_initializer():
        return False
    if tensor.dtype != DataType.INT8:
        return False
    codes = tensor.numpy()
    if codes.ndim < 2 or codes.size == 0:
        return False
    lowest = int(codes.min())
    highest = int(codes.max())
    return lowest < -REACH or highest > REACH


def _middle(weight: Value, node: Node) -> Value:
    """Return the zero point 128 for a weight that had none, which means 0."""
    shape: tuple[int, ...] = ()
    if node.op_type == "DequantizeLinear":
        # It takes as many zero points as scales; integer products take one for all.
        scale = input_at(node, 1)
        assert scale is not None and scale.shape is not None
        shape = tuple(scale.shape.numpy())
    middle = np.full(shape, _MIDDLE, np.uint8)
    return _held(weight, f"{weight.name}_middle", middle)


def _unsigned(value: Value) -> Value:
    """Return an initializer with the bytes of ``value`` counted from 128."""
    tensor = value.const_value
    assert tensor is not None
    codes = tensor.numpy().astype(np.int16) + _MIDDLE
    return _held(value, f"{value.name}_unsigned", codes.astype(np.uint8))


def _held(beside: Value, name: str, array: np.ndarray) -> Value:
    """Return a new initializer in the graph of another one."""
    tensor = ir.Tensor(array, name=name)
    of_bytes = ir.TensorType(DataType.UINT8)
    shape = ir.Shape(array.shape)
    value = Value(name=name, shape=shape, type=of_bytes, const_value=tensor)
    assert beside.graph is not None
    beside.graph.register_initializer(value)
    return value
