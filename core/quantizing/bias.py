"""Biases that make up for what rounding does to an op's mean output."""

from __future__ import annotations

from array_api_compat import array_namespace

from octavo.core.numerics.affine import Array
from octavo.core.numerics.tensor import QuantizedTensor


def corrected_bias(bias: Array, matrix: Array, quantized: QuantizedTensor, mean: Array) -> Array:
    """Return the bias that keeps the mean output: b + (W - W_q) E[x], float32.

    Args:
        bias: float32, shape (channels,).
        matrix: The float weight, shape (channels, features).
        quantized: Its quantized form, of the same shape.
        mean: E[x], shape (features,), or (groups, features) for a grouped convolution; a transposed one's rows hold the features
            of all groups in turn.

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
