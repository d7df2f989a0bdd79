"""What folds into the operator before: activations, factors and sums of channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .layout import Conversion
from .reading import Node

ACTIVATION = schema.ActivationFunctionType

FUSES = frozenset(
    {
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "ADD",
        "SUB",
        "MUL",
        "DIV",
        "AVERAGE_POOL_2D",
        "MAX_POOL_2D",
    }
)
"""Operators whose options have ``fusedActivationFunction``, by the schema."""

PRODUCTS = {
    "CONV_2D": (1, 2, 0),
    "DEPTHWISE_CONV_2D": (1, 2, -1),
    "FULLY_CONNECTED": (1, 2, 0),
    "TRANSPOSE_CONV": (1, 3, 0),
}
"""Operators into which factors and sums of channels fold: the inputs that are its weight and bias,
the weight's axis of output channels."""


def fuse(state: Conversion, node: Node, activation: int) -> bool:
    """Let the operator before compute an activation; return whether it can."""
    maker = _maker(state, node.inputs[0], FUSES)
    if maker is None:
        return False
    maker.builtinOptions.fusedActivationFunction = activation
    state.same(node, node.inputs[0], state.value(node.inputs[0]))
    return True


def fold(
    state: Conversion, node: Node, name: str, factor: np.ndarray, offset: np.ndarray
) -> bool:
    """Let the product before compute ``y * factor + offset`` too.

    Args:
        state: The conversion.
        node: What asks for it.
        name: The value y.
        factor: A number for each channel, or for all.
        offset: Likewise.

    Returns:
        Whether there is such a product, whose value nothing else reads.
    """
    maker = _maker(state, name, frozenset(PRODUCTS))
    if maker is None:
        return False
    arrays = state.builder.arrays
    *places, axis = PRODUCTS[state.builder.code(maker)]
    weight, bias = (maker.inputs[place] for place in places)
    along = [1] * arrays[weight].ndim
    along[axis] = -1
    channels = arrays[bias].shape
    factors = np.broadcast_to(factor, channels)
    arrays[weight] = (arrays[weight] * factors.reshape(along)).astype(np.float32)
    arrays[bias] = (arrays[bias] * factors + offset).astype(np.float32)
    state.same(node, name, state.value(name))
    return True


def is_positive(state: Conversion, name: str) -> bool:
    """Return whether an activation keeps a value from being negative."""
    held = next(iter(state.value(name).held.values()), -1)
    maker = state.builder.makers.get(held)
    if maker is None:
        return False
    code = state.builder.code(maker)
    fused = code in FUSES and maker.builtinOptions.fusedActivationFunction
    return code in ("RELU", "RELU6") or fused in (ACTIVATION.RELU, ACTIVATION.RELU6)


def _maker(state: Conversion, name: str, codes: frozenset[str]) -> Any:
    """Return the operator that makes a value, if only one reads it and it may still change."""
    value = state.value(name)
    if state.graph.uses[name] != 1 or len(value.held) != 1:
        return None
    maker = state.builder.makers.get(next(iter(value.held.values())))
    if maker is None or state.builder.code(maker) not in codes:
        return None
    if maker.builtinOptions.fusedActivationFunction != ACTIVATION.NONE:
        return None
    return maker
