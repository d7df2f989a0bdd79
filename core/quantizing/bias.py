"""Biases that make up for what rounding does to an op's mean output."""

from __future__ import annotations

from dataclasses import replace

from array_api_compat import array_namespace

from octavo.core.calibration.features import FeatureSum
from octavo.core.calibration.statistics import Statistics
from octavo.core.numerics.affine import Array
from octavo.core.numerics.layout import to_matrix
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.graph import Op

from .input_features import feature_probes


def correct_bias(
    op: Op,
    weight: Array,
    bias: Array,
    quantized: QuantizedTensor,
    statistics: Statistics,
) -> Array | None:
    """Return the bias with the mean error of the quantized weight added.

    Args:
        op: A linear op or a convolution.
        weight: Its float weight, in its own shape.
        bias: Its float bias.
        quantized: Its quantized weight, in the same shape.
        statistics: Holds the ``channel_mean`` of its input.

    Returns:
        float32, shape (channels,); None where the op reads no rows or calibration sent it none.
    """
    assert op.weight is not None
    probe = next(feature_probes(op, ("channel_mean",)), None)
    if probe is None:
        return None
    sums = statistics.observer(probe)
    assert isinstance(sums, FeatureSum)
    if not sums.count:
        return None
    axis = op.weight.channel_axis
    params = quantized.params
    if params.axis is not None:
        params = replace(params, axis=0)
    repair = quantized.repair
    if repair is not None:
        repair = replace(repair, axis=0)
    codes = to_matrix(quantized.codes, axis)
    flat = QuantizedTensor(codes, params, quantized.extra, repair)
    xp = array_namespace(weight)
    matrix = xp.astype(to_matrix(weight, axis), xp.float32)
    mean = sums.value / max(1, sums.count)
    return corrected_bias(xp.astype(bias, xp.float32), matrix, flat, mean)


def corrected_bias(
    bias: Array, matrix: Array, quantized: QuantizedTensor, mean: Array
) -> Array:
    """Return the bias that keeps the mean output: b + (W - W_q) E[x], float32.

    Args:
        bias: float32, shape (channels,).
        matrix: The float weight, shape (channels, features).
        quantized: Its quantized form, of the same shape.
        mean: E[x], shape (features,), or (groups, features) for a grouped convolution; a transposed
            one's rows hold the features of all groups in turn.

    Source: Nagel et al. 2019, eq. 17. One matrix-vector product.
    """
    xp = array_namespace(bias, matrix)
    means = xp.reshape(mean, (-1, mean.shape[-1]))
    groups, features = means.shape
    error = matrix - quantized.dequantize()
    if features == matrix.shape[1]:
        error = xp.reshape(error, (groups, -1, features))
    else:
        error = xp.permute_dims(xp.reshape(error, (-1, groups, features)), (1, 0, 2))
    return bias + xp.reshape(xp.matmul(error, means[:, :, None]), (-1,))
