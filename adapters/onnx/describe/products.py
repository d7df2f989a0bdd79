"""Products recognized: MatMul, Gemm and Einsum, with the bias and the activation behind them."""

from __future__ import annotations

from onnx_ir import Node, Value

from octavo.adapters.onnx.prepare.already_quantized import in_pairs
from octavo.adapters.onnx.prepare.constants import is_constant
from octavo.adapters.onnx.prepare.patterns import input_at, int_of, rank_of

from .drafts import IN_PAIRS, Draft
from .fusing import fuse_activation, only_reader
from .site import Site, is_float, is_non_float


def product_site(node: Node, fused: set[Node]) -> Site | None:
    """Describe a MatMul or Gemm; None for one of integers, or of constants alone."""
    left = node.inputs[0]
    right = node.inputs[1]
    if left is None or right is None or is_non_float(node.outputs[0]):
        return None
    if not is_constant(right) and in_pairs(node, (0, 1)):
        return Draft(node, "matmul", (0, 1), why=IN_PAIRS).site()
    if is_constant(left):
        if is_constant(right):
            return None
        why = "its left side is a stack of constant matrices, or the right side's rank is unknown"
        weight = 0 if _is_weight(left) else None
        return Draft(node, "matmul", (1,), weight=weight, why=why).site()
    if not is_constant(right):
        why = "a Gemm of two activations" if node.op_type == "Gemm" else ""
        return Draft(node, "matmul", (0, 1), why=why).site()
    rank = rank_of(right) or 0
    if rank < 2:
        return Draft(
            node, "matmul", (0,), why="its constant side is not a matrix"
        ).site()
    if rank > 2:
        return Draft(
            node, "batched_linear", (0,), weight=1, channel_axis=rank - 1
        ).site()
    if node.op_type == "Gemm":
        return _gemm(node, fused)
    return _matmul(node, fused)


def _matmul(node: Node, fused: set[Node]) -> Site:
    last, bias = node, None
    add = only_reader(node.outputs[0], "Add")
    if add is not None:
        if add.inputs[0] is node.outputs[0]:
            other = add.inputs[1]
        else:
            other = add.inputs[0]
        if _is_bias_of(node, other):
            last, bias = add, other
            fused.add(add)
    last, activation = fuse_activation(last, fused)
    draft = Draft(
        node,
        "linear",
        (0,),
        last,
        weight=1,
        bias=bias,
        activation=activation,
        channel_axis=1,
    )
    return draft.site()


def _is_bias_of(product: Node, added: Value | None) -> bool:
    """True for a constant of one number per column of a product."""
    left = product.inputs[0]
    right = product.inputs[1]
    assert left is not None and right is not None and right.shape is not None
    if added is None or added.shape is None or not is_constant(added):
        return False
    columns = right.shape[1]
    if added.shape.dims == (columns,):
        return True
    # scikit-learn's exporter writes a row, which must not add an axis to the result.
    is_row = added.shape.dims == (1, columns)
    return is_row and (rank_of(left) or 0) >= 2


def _gemm(node: Node, fused: set[Node]) -> Site:
    is_transposed = int_of(node, "transB", 0) == 1
    channel_axis = 0 if is_transposed else 1
    bias = input_at(node, 2)
    why = _why_gemm_not_linear(node, bias, channel_axis)
    last, activation = fuse_activation(node, fused)
    draft = Draft(
        node,
        "linear",
        (0,),
        last,
        weight=1,
        bias=bias,
        activation=activation,
        why=why,
        channel_axis=channel_axis,
    )
    return draft.site()


def _why_gemm_not_linear(node: Node, bias: Value | None, channel_axis: int) -> str:
    weight = node.inputs[1]
    assert weight is not None and weight.shape is not None
    columns = weight.shape[channel_axis]
    vectors = ((columns,), (1, columns))
    if bias is not None:
        is_vector = bias.shape is not None and bias.shape.dims in vectors
        if not is_constant(bias) or not is_vector:
            return "its bias is not a constant vector"
    for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        if name in node.attributes and node.attributes[name].value != default:
            return f"its {name} is not the default"
    return ""


def einsum_site(node: Node) -> Site | None:
    """Describe an Einsum that is no product with a matrix; those are MatMul by now."""
    acts: list[int] = []
    weights: list[int] = []
    for index, value in enumerate(node.inputs):
        if not is_constant(value) or not is_float(value):
            acts.append(index)
        elif _is_weight(value):
            weights.append(index)
    if not acts:
        return None
    weight = weights[0] if weights else None
    why = "its equation is no product of an activation and a constant matrix"
    return Draft(node, "einsum", tuple(acts), weight=weight, why=why).site()


def _is_weight(value: Value | None) -> bool:
    """True for a constant that counts as a weight: one of two or more dimensions."""
    held = value.const_value if value is not None else None
    return held is not None and len(held.shape) >= 2
