"""What the core would decide for one op, without data: for a backend that tries itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from octavo.core.contract.candidate import OpParameters
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array, QuantParams, affine_params
from octavo.core.numerics.codec import choose_params, encode
from octavo.core.numerics.layout import contiguous, from_matrix, to_matrix
from octavo.core.numerics.ranges import ranges
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.graph import Op, Weight
from octavo.core.values.scheme import OpScheme, QuantSpec

WeightsByName = Mapping[str, Array] | Callable[[str], Array]
"""Weight name -> array, or what returns it (``session.tensor``)."""


def one_op_parameters(
    op: Op,
    scheme: OpScheme,
    weights: WeightsByName,
    low: float = -4.0,
    high: float = 4.0,
    *,
    reduced: bool = False,
    seen: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> OpParameters:
    """Return all that the core decides for one op, by rounding to nearest and fixed ranges.

    Args:
        op: The op, as ``describe()`` has it.
        scheme: What to carry out.
        weights: Its weights, float, in the shapes that the op states.
        low: Lower end of every activation that is not in ``seen``, for static schemes.
        high: Upper end.
        reduced: Round the weights over a range of one bit less, as the core does where an offer is
            ``narrowed``.
        seen: Name of a value -> an array of it, whose range is taken.

    Raises:
        SchemeError: If the scheme has a weight and the op none.
        NonFiniteWeight: If a weight holds NaN or Inf.
    """
    spec = scheme.weight
    quantized: list[QuantizedTensor] = []
    if spec is not None:
        if op.weight is None:
            raise SchemeError(f"[{scheme}] has a weight, and op {op.name!r} has none")
        carried = spec.reduced() if reduced else spec
        quantized = [_rounded(w, _found(weights, w.name), carried) for w in op.weights]
    inputs: tuple[QuantParams | None, ...] = ()
    outputs: tuple[QuantParams | None, ...] = ()
    if scheme.mode == "static":
        ranges_of = {value: _ends(array) for value, array in seen.items()}
        inputs, outputs = (
            tuple(_fixed(spec, *ranges_of.get(value, (low, high))) for value in values)
            for spec, values in ((scheme.input, op.inputs), (scheme.output, op.outputs))
        )
    first = quantized[0] if quantized else None
    return OpParameters(scheme, first, inputs, outputs, further=tuple(quantized[1:]))


def _found(weights: WeightsByName, name: str) -> Array:
    return weights(name) if callable(weights) else weights[name]


def _rounded(weight: Weight, array: Array, spec: QuantSpec) -> QuantizedTensor:
    """Round a weight to the nearest codes of its own range."""
    axis = weight.channel_axis % array.ndim
    matrix = to_matrix(array, axis)
    low, high = ranges(matrix, spec)
    # In a matrix a row is a channel; in the weight the channels lie along its own axis.
    row_axis = None if spec.granularity == "tensor" else 0
    params, second = choose_params(low, high, spec, row_axis)
    codes = from_matrix(encode(matrix, params), tuple(array.shape), axis)
    if params.axis is not None:
        params = replace(params, axis=axis)
    # Contiguous: some writers take the memory as it lies.
    return QuantizedTensor(contiguous(codes), params, second)


def _ends(array: np.ndarray) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def _fixed(spec: QuantSpec | None, low: float, high: float) -> QuantParams | None:
    """Return the parameters of an activation whose range is known."""
    if spec is None:
        return None
    return affine_params(np.float32(low), np.float32(high), spec)
