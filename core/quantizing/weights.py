"""One weight from float to codes, by its algorithm, with what calibration saw of its input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace

from octavo.core.contract.algorithm import WeightAlgorithm, WeightContext
from octavo.core.errors import NonFiniteWeight, SchemeError
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.codec import choose_params
from octavo.core.numerics.layout import from_matrix, to_matrix
from octavo.core.numerics.ranges import ranges
from octavo.core.numerics.rows import rounding_rows
from octavo.core.numerics.scales import rounded_scale, settled, shares_scales
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.graph import Op
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.sizes import block_shape

from .chains import built_chain
from .input_features import (
    INDEPENDENT,
    WEIGHING,
    WeightRequest,
    independent,
    weight_contexts,
    with_paired,
)

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


def quantize_weight(
    request: WeightRequest, array: Array, host: PluginHost
) -> QuantizedTensor:
    """Quantize one weight.

    Args:
        request: Which one, and how.
        array: The weight.
        host: Builds the algorithm.

    Returns:
        Codes in the weight's own shape; ``params.axis`` is its channel axis.

    Raises:
        NonFiniteWeight: If it holds NaN or Inf; the message names it.
        SchemeError: If the algorithm lacks what it needs.
    """
    op, scheme = request.op, request.scheme
    assert op.weight is not None
    assert scheme.weight is not None
    _check_observable(op, scheme, request.needs)
    algorithms = built_chain(scheme, host)
    axis = op.weight.channel_axis % array.ndim
    matrix = to_matrix(array, axis)
    contexts = weight_contexts(request, matrix)
    if request.paired is not None:
        contexts = with_paired(op, contexts, request.paired)
    elif "paired_gram" in request.needs:
        # Nothing came by: an expert without a token, a looked-up table.
        contexts = [independent(matrix)]
    if request.gradient_square is not None:
        squares = to_matrix(request.gradient_square, axis)
        contexts = _with_gradients(contexts, squares)
    try:
        result = _in_turn(algorithms, matrix, scheme.weight, contexts)
    except NonFiniteWeight as error:
        raise NonFiniteWeight(
            f"weight {op.weight.name!r} of op {op.name!r} holds NaN or Inf; repair it, "
            "or keep the op in float with a rule"
        ) from error
    except SchemeError as error:
        raise SchemeError(f"op {op.name!r}: {error}") from error
    params, extra = settled(result.params, result.extra)
    result = replace(result, params=params, extra=extra)
    return _in_own_shape(result, tuple(array.shape), axis)


def _in_turn(
    algorithms: Sequence[WeightAlgorithm],
    matrix: Array,
    spec: QuantSpec,
    contexts: list[WeightContext],
) -> QuantizedTensor:
    """Let each algorithm go on from what the one before it made."""
    first, *refining = algorithms
    if len(contexts) == 1:
        found = first.quantize(matrix, spec, contexts[0])
        for algorithm in refining:
            if found.repair is not None:
                raise SchemeError(
                    "low_rank repairs what all rounding left: put it last in the chain"
                )
            context = replace(contexts[0], start=found)
            found = algorithm.quantize(matrix, spec, context)
        return found
    found = _in_parts(first, matrix, spec, contexts)
    for algorithm in refining:
        found = _refined_in_parts(algorithm, matrix, spec, contexts, found)
    return found


def _with_gradients(
    contexts: list[WeightContext], squares: Array
) -> list[WeightContext]:
    """Return each context with the squared gradients of its own rows."""
    height = squares.shape[0] // len(contexts)
    return [
        replace(context, gradient_square=squares[i * height : (i + 1) * height, :])
        for i, context in enumerate(contexts)
    ]


def _check_observable(op: Op, scheme: OpScheme, needs: frozenset[str]) -> None:
    missing = sorted(needs & WEIGHING)
    if missing and rounding_rows(op) is None and op.type not in INDEPENDENT:
        raise SchemeError(
            f"op {op.name!r}: {scheme.rounding} needs the {missing[0]} of its input, and the "
            f"weight of a {op.type} multiplies no rows that calibration observes; "
            "use rtn or hqq, which need none"
        )


def _in_own_shape(
    matrix: QuantizedTensor, shape: tuple[int, ...], axis: int
) -> QuantizedTensor:
    """Return a quantized matrix as the weight that it was made of."""
    xp = array_namespace(matrix.codes)
    codes = from_matrix(matrix.codes, shape, axis)
    # Contiguous: some writers take the memory as it lies.
    codes = xp.reshape(xp.reshape(codes, (-1,)), shape)
    params = matrix.params
    if params.axis is not None:
        params = replace(params, axis=axis)
    repair = matrix.repair
    if repair is not None:
        repair = replace(repair, axis=axis)
    return QuantizedTensor(codes, params, matrix.extra, repair)


def _in_parts(
    algorithm: WeightAlgorithm,
    matrix: Array,
    spec: QuantSpec,
    contexts: list[WeightContext],
) -> QuantizedTensor:
    """Quantize each group of a grouped convolution with what its own inputs showed."""
    xp = array_namespace(matrix)
    height = matrix.shape[0] // len(contexts)
    if spec.granularity.startswith("block:") and height % block_shape(spec)[0]:
        raise SchemeError(
            f"{spec} spans groups of this convolution; use channel or tensor granularity, "
            "or an algorithm that needs no calibration"
        )
    pieces = [matrix[span, :] for span in _spans(matrix.shape[0], len(contexts))]
    whole, extra = _common_grid(algorithm, matrix, spec, pieces, contexts)
    if whole is not None:
        grids = _divided(whole, len(pieces))
        contexts = [
            replace(c, params=grid) for c, grid in zip(contexts, grids, strict=True)
        ]
    parts = [
        algorithm.quantize(piece, spec, context)
        for piece, context in zip(pieces, contexts, strict=True)
    ]
    _check_repairs_none(parts)
    params = whole or _joined([part.params for part in parts])
    return QuantizedTensor(xp.concat([part.codes for part in parts]), params, extra)


def _refined_in_parts(
    algorithm: WeightAlgorithm,
    matrix: Array,
    spec: QuantSpec,
    contexts: Sequence[WeightContext],
    start: QuantizedTensor,
) -> QuantizedTensor:
    """Let an algorithm go on from what was made of all groups, each with its own inputs.

    Where the groups share a scale, or its second level, none of them can leave the start's grid.
    """
    xp = array_namespace(matrix)
    spans = _spans(matrix.shape[0], len(contexts))
    grids = _divided(start.params, len(contexts))
    is_shared = spec.granularity == "tensor" or shares_scales(spec)
    parts = []
    for span, grid, context in zip(spans, grids, contexts, strict=True):
        begun = QuantizedTensor(start.codes[span, :], grid)
        own = replace(context, start=begun, params=grid if is_shared else None)
        parts.append(algorithm.quantize(matrix[span, :], spec, own))
    _check_repairs_none(parts)
    params = start.params if is_shared else _joined([part.params for part in parts])
    extra = start.extra if is_shared else None
    return QuantizedTensor(xp.concat([part.codes for part in parts]), params, extra)


def _check_repairs_none(parts: Iterable[QuantizedTensor]) -> None:
    if any(part.repair is not None for part in parts):
        raise SchemeError(
            "the groups of this convolution are quantized one by one, and no product of two "
            "matrices repairs them together: leave low_rank out for it"
        )


def _spans(rows: int, count: int) -> list[slice]:
    """Return the rows of each of so many groups."""
    height = rows // count
    return [slice(i * height, (i + 1) * height) for i in range(count)]


def _common_grid(
    algorithm: WeightAlgorithm,
    matrix: Array,
    spec: QuantSpec,
    pieces: Sequence[Array],
    contexts: Sequence[WeightContext],
) -> tuple[QuantParams | None, dict[str, Any] | None]:
    """Return the parameters that all pieces must use, with the second level of their scales.

    None where each piece may choose its own.
    """
    if spec.granularity == "tensor":
        low, high = ranges(matrix, spec)
        return choose_params(low, high, spec, None)
    if not shares_scales(spec):
        return None, None
    # Each group chooses, all choices are rounded together, and the codes are made on what comes
    # out.
    chosen = [
        algorithm.quantize(piece, spec, context).params
        for piece, context in zip(pieces, contexts, strict=True)
    ]
    return rounded_scale(_joined(chosen))


def _divided(whole: QuantParams, count: int) -> list[QuantParams]:
    """Return each piece's part of common parameters; one scale for all belongs to each of them."""
    if whole.spec.granularity == "tensor":
        return [whole] * count
    return [
        replace(
            whole, scale=whole.scale[span, ...], zero_point=whole.zero_point[span, ...]
        )
        for span in _spans(whole.scale.shape[0], count)
    ]


def _joined(params: Sequence[QuantParams]) -> QuantParams:
    xp = array_namespace(params[0].scale)
    scale = xp.concat([p.scale for p in params])
    zero_point = xp.concat([p.zero_point for p in params])
    return replace(params[0], scale=scale, zero_point=zero_point)
