"""Norms written out in single operators: their gain is a Mul, their shift an Add.

``x / sqrt(mean(x**2) + eps) * gain``: LLaMA's and Gemma's RMSNorm (whose gain 1 + w is one constant
once it is folded), and layer norms of exporters that know no LayerNormalization.
"""

from __future__ import annotations

from typing import NamedTuple

from onnx_ir import Node, Value

from octavo.adapters.onnx.prepare.constants import constant, is_constant, scalar
from octavo.adapters.onnx.prepare.patterns import (
    int_of,
    ints_of,
    is_standard,
    only_use,
    producer_at,
    producer_of,
    rank_of,
)

Place = tuple[Node, int]
"""A node, and which of its inputs."""


class WrittenNorm(NamedTuple):
    """Where a norm's parameters are read.

    Attributes:
        gain: Multiplied by.
        shift: Added; None where there is none.
        last: The node that writes the norm's output.
        width: How many channels, on the last axis.
    """

    gain: Place
    shift: Place | None
    last: Node
    width: int


def written_norm(node: Node) -> WrittenNorm | None:
    """Return the norm whose gain a Mul multiplies by; None if it is none."""
    if not is_standard(node, "Mul"):
        return None
    index = next((i for i, v in enumerate(node.inputs) if is_constant(v)), None)
    if index is None or not _is_normalised(node.inputs[1 - index]):
        return None
    width = _width(node.inputs[index])
    if width < 2:
        return None
    shift = _shift_behind(node, width)
    last = node if shift is None else shift[0]
    return WrittenNorm((node, index), shift, last, width)


def _shift_behind(node: Node, width: int) -> Place | None:
    use = only_use(node.outputs[0])
    if use is None:
        return None
    add, index = use
    if not is_standard(add, "Add"):
        return None
    other = 1 - index
    return (add, other) if _width(add.inputs[other]) == width else None


def _width(value: Value | None) -> int:
    """Return the length of a constant vector along the last axis; 0 for anything else."""
    held = constant(value)
    if held is None or held.ndim == 0 or held.size != held.shape[-1]:
        return 0
    return int(held.size)


def _is_normalised(value: Value | None) -> bool:
    """True for what is divided by its own root mean square or deviation over the last axis."""
    node = _uncast(value)
    if is_standard(node, "Div"):
        return _is_deviation(node.inputs[1])
    if not is_standard(node, "Mul"):
        return False
    return any(_is_inverse_deviation(v) for v in node.inputs)


def _is_inverse_deviation(value: Value | None) -> bool:
    node = _uncast(value)
    if is_standard(node, "Reciprocal"):
        return _is_deviation(node.inputs[0])
    if is_standard(node, "Div") and scalar(node.inputs[0]) == 1.0:
        return _is_deviation(node.inputs[1])
    if is_standard(node, "Pow") and scalar(node.inputs[1]) == -0.5:
        return _is_variance(node.inputs[0])
    return False


def _is_deviation(value: Value | None) -> bool:
    node = _uncast(value)
    if is_standard(node, "Pow") and scalar(node.inputs[1]) == 0.5:
        return _is_variance(node.inputs[0])
    return is_standard(node, "Sqrt") and _is_variance(node.inputs[0])


def _is_variance(value: Value | None) -> bool:
    """True for a mean of squares over the last axis, and a constant that keeps it from zero."""
    node = _uncast(value)
    if not is_standard(node, "Add"):
        return False
    if not any(constant(v) is not None for v in node.inputs):
        return False
    return any(_is_mean_of_squares(_uncast(v)) for v in node.inputs)


def _is_mean_of_squares(node: Node | None) -> bool:
    if not is_standard(node, "ReduceMean") or not int_of(node, "keepdims", 1):
        return False
    square = _uncast(node.inputs[0])
    is_power = is_standard(square, "Pow") and scalar(square.inputs[1]) == 2.0
    is_product = is_standard(square, "Mul") and square.inputs[0] is square.inputs[1]
    if not is_power and not is_product:
        return False
    rank = rank_of(node.inputs[0])
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = ints_of(node, "axes") if given is None else given.tolist()
    last = (-1,) if rank is None else (-1, rank - 1)
    return axes is not None and len(axes) == 1 and axes[0] in last


def _uncast(value: Value | None) -> Node | None:
    """Return the node that computes a value, a change of float type aside."""
    node = producer_of(value)
    while is_standard(node, "Cast"):
        node = producer_at(node, 0)
    return node
