"""One weight through one algorithm: what it needs of calibration, and its way as a matrix and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from array_api_compat import array_namespace, device

from octavo.core.calibration.features import FEATURES, FeatureObserver, FeatureSum
from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.algorithm import WeightAlgorithm, WeightContext
from octavo.core.contract.calibrator import Observer, Probe
from octavo.core.errors import NonFiniteWeight, SchemeError
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.codec import choose, rounded_scale, shares_scales
from octavo.core.numerics.layout import from_matrix, to_matrix
from octavo.core.numerics.ranges import ranges
from octavo.core.numerics.rows import rounding_rows
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.graph import Op
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec

from .bias import corrected_bias

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


_INDEPENDENT = ("embedding", "lstm", "gru", "rnn", "batched_linear")
"""Their features count as independent and weigh alike: a looked-up row is an output by itself, and a recurrent state is not observed."""

SeenBy = Callable[[str, str], Statistics]


def feature_probes(op: Op, needs: Iterable[str]) -> Iterable[Probe]:
    """Yield the probes of an op's input features; none for ops whose weight multiplies no rows (embeddings)."""
    rows = rounding_rows(op)
    if rows is not None and op.inputs:
        yield from (
            Probe(op.inputs[0], PartChoice(kind=need), None, rows)
            for need in sorted(needs)
            if need in FEATURES
        )


def quantize_weight(
    op: Op,
    users: tuple[Op, ...],
    array: Array,
    scheme: OpScheme,
    needs: frozenset[str],
    seen_by: SeenBy,
    host: PluginHost,
) -> QuantizedTensor:
    """Quantize one weight.

    Args:
        op: The op that asks.
        users: Every op that uses the weight; what they see of calibration is put together.
        array: The weight.
        scheme: Its weight spec and algorithm.
        needs: What the algorithm needs of calibration.
        seen_by: (op name, value name) -> what calibration saw of the value as the op meets it.
        host: Builds the algorithm.

    Returns:
        Codes in the weight's own shape; ``params.axis`` is its channel axis.

    Raises:
        NonFiniteWeight: If it holds NaN or Inf; the message names it.
        SchemeError: If the algorithm lacks what it needs.
    """
    assert op.weight is not None
    assert scheme.weight is not None
    spec, axis, xp = scheme.weight, op.weight.channel_axis % array.ndim, array_namespace(array)
    missing = sorted(needs & {"gram", "channel_range"})
    if missing and rounding_rows(op) is None and op.type not in _INDEPENDENT:
        raise SchemeError(
            f"op {op.name!r}: {scheme.algorithm.kind} needs the {missing[0]} of its input, and the weight of a {op.type} multiplies no rows "
            "that calibration observes; use rtn or hqq, which need none"
        )
    algorithm: WeightAlgorithm = host.part("algorithms", scheme.algorithm.kind).build(
        host.read("algorithms", scheme.algorithm.table())
    )
    matrix = to_matrix(array, axis)
    contexts = _contexts(op, users, needs, seen_by, matrix)
    try:
        whole = len(contexts) == 1
        result = (
            algorithm.quantize(matrix, spec, contexts[0])
            if whole
            else _in_parts(algorithm, matrix, spec, contexts)
        )
    except NonFiniteWeight as error:
        raise NonFiniteWeight(
            f"weight {op.weight.name!r} of op {op.name!r} holds NaN or Inf; repair it, or keep the op in float with a rule"
        ) from error
    except SchemeError as error:
        raise SchemeError(f"op {op.name!r}: {error}") from error
    # Back in the weight's own order, and contiguous: some writers take the memory as it lies.
    codes = xp.reshape(
        xp.reshape(from_matrix(result.codes, tuple(array.shape), axis), (-1,)), tuple(array.shape)
    )
    params = replace(result.params, axis=axis) if result.params.axis is not None else result.params
    return QuantizedTensor(codes, params, result.extra)


def _contexts(
    op: Op, users: tuple[Op, ...], needs: frozenset[str], seen_by: SeenBy, matrix: Array
) -> list[WeightContext]:
    """One context per group of a grouped convolution; one for every other op."""
    asked = [
        u for u in users if any(p in seen_by(u.name, p.value) for p in feature_probes(u, needs))
    ]
    seen = [
        u
        for u in asked
        if any(_count(seen_by(u.name, p.value).observer(p)) for p in feature_probes(u, needs))
    ]
    if not seen:
        if (asked or op.type in _INDEPENDENT) and needs & {"gram", "channel_range"}:
            # An expert may have met no token: then its features, too, count as independent and weigh alike.
            xp = array_namespace(matrix)
            n = matrix.shape[1]
            ones = xp.ones((n,), dtype=xp.float32, device=device(matrix))
            return [
                WeightContext(xp.eye(n, dtype=xp.float32, device=device(matrix)), ones, 0 * ones, 1)
            ]
        return [WeightContext()]
    found: dict[str, FeatureObserver] = {}
    for user in {u.name: u for u in seen}.values():
        for probe in feature_probes(user, needs):
            observer = seen_by(user.name, probe.value).observer(probe)
            assert isinstance(observer, FeatureObserver)
            found[probe.calibrator.kind] = observer.joined(found.get(probe.calibrator.kind))
    groups = max(len(o.value) for o in found.values())
    count = max(o.count for o in found.values())
    gram, absmax, sums = (found.get(k) for k in ("gram", "channel_range", "channel_mean"))
    if op.type == "conv_transpose":
        # A row of its matrix holds the weights of every group, and the groups' inputs never meet in one output.
        xp = array_namespace(matrix)
        absolute = xp.reshape(absmax.value, (-1,)) if absmax else None
        mean = xp.reshape(sums.value, (-1,)) / max(1, sums.count) if sums else None
        return [WeightContext(_block_diagonal(gram.value) if gram else None, absolute, mean, count)]
    return [
        WeightContext(
            gram.value[i, ...] if gram else None,
            absmax.value[i, ...] if absmax else None,
            sums.value[i, ...] / max(1, sums.count) if sums else None,
            count,
        )
        for i in range(groups)
    ]


def _count(observer: Observer) -> int:
    """Return how many rows were seen."""
    return observer.count if isinstance(observer, FeatureObserver) else 0


def _block_diagonal(blocks: Array) -> Array:
    xp = array_namespace(blocks)
    count, size, _ = blocks.shape
    eye = xp.eye(count, dtype=blocks.dtype, device=device(blocks))
    return xp.reshape(eye[:, None, :, None] * blocks[:, :, None, :], (count * size, count * size))


def _in_parts(
    algorithm: WeightAlgorithm, matrix: Array, spec: QuantSpec, contexts: list[WeightContext]
) -> QuantizedTensor:
    """Quantize each group of a grouped convolution with what its own inputs showed."""
    xp = array_namespace(matrix)
    rows = matrix.shape[0] // len(contexts)
    if spec.granularity.startswith("block:") and rows % int(
        spec.granularity.removeprefix("block:").partition("x")[0]
    ):
        raise SchemeError(
            f"{spec} spans groups of this convolution; use channel or tensor granularity, or an algorithm that needs no calibration"
        )
    pieces = [matrix[i * rows : (i + 1) * rows, :] for i in range(len(contexts))]
    grids: Sequence[QuantParams | None] = [None] * len(pieces)
    whole, extra = None, None
    if spec.granularity == "tensor":
        whole, extra = choose(*ranges(matrix, spec), spec, None)
        grids = [whole] * len(pieces)
    elif shares_scales(spec):
        # Each group chooses, all choices are rounded together, and the codes are made on what comes out.
        chosen = [
            algorithm.quantize(piece, spec, context).params
            for piece, context in zip(pieces, contexts, strict=True)
        ]
        whole, extra = rounded_scale(_joined(chosen))
        height = whole.scale.shape[0] // len(pieces)
        spans = [slice(i * height, (i + 1) * height) for i in range(len(pieces))]
        grids = [
            replace(whole, scale=whole.scale[s, ...], zero_point=whole.zero_point[s, ...])
            for s in spans
        ]
    parts = [
        algorithm.quantize(piece, spec, replace(context, params=grid))
        for piece, context, grid in zip(pieces, contexts, grids, strict=True)
    ]
    return QuantizedTensor(
        xp.concat([p.codes for p in parts]), whole or _joined([p.params for p in parts]), extra
    )


def _joined(params: Sequence[QuantParams]) -> QuantParams:
    xp = array_namespace(params[0].scale)
    scale, zero_point = (
        xp.concat([p.scale for p in params]),
        xp.concat([p.zero_point for p in params]),
    )
    return replace(params[0], scale=scale, zero_point=zero_point)


def correct_bias(
    op: Op, weight: Array, bias: Array, quantized: QuantizedTensor, statistics: Statistics
) -> Array | None:
    """Return the bias with the mean error of the quantized weight added, or None where the op reads no rows or calibration sent it none.

    Args:
        op: A linear op or a convolution.
        weight: Its float weight, in its own shape.
        bias: Its float bias.
        quantized: Its quantized weight, in the same shape.
        statistics: Holds the ``channel_mean`` of its input.
    """
    assert op.weight is not None
    probe = next(iter(feature_probes(op, ("channel_mean",))), None)
    if probe is None:
        return None
    sums = statistics.observer(probe)
    assert isinstance(sums, FeatureSum)
    if not sums.count:
        return None
    axis, params, xp = op.weight.channel_axis, quantized.params, array_namespace(weight)
    flat = QuantizedTensor(
        to_matrix(quantized.codes, axis),
        replace(params, axis=None if params.axis is None else 0),
        quantized.extra,
    )
    matrix = xp.astype(to_matrix(weight, axis), xp.float32)
    return corrected_bias(
        xp.astype(bias, xp.float32), matrix, flat, sums.value / max(1, sums.count)
    )
