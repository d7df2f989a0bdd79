"""What algorithms of least output error share: the error, its gradient and its lean.

All on a Gram matrix and without autograd.
"""

from __future__ import annotations

from dataclasses import replace

from array_api_compat import array_namespace

from octavo.core.contract.algorithm import WeightContext
from octavo.core.numerics.affine import Array
from octavo.core.numerics.scales import has_movable_scales, rounded_scale
from octavo.core.numerics.tensor import QuantizedTensor


def normalised(gram: Array) -> Array:
    """Return the Gram matrix divided by the mean of its diagonal.

    Step sizes then do not depend on the data's scale.
    """
    xp = array_namespace(gram)
    mean = xp.mean(xp.linalg.diagonal(gram))
    # Inputs that never fired leave nothing to divide by.
    unit = xp.where(mean > 0, mean, xp.ones_like(mean))
    return gram / unit


def output_error(error: Array, gram: Array) -> tuple[Array, Array]:
    """Return (loss of each row, half the gradient) of tr(E G E^T).

    The gradient with respect to W_q is 2 E G.

    Args:
        error: E = W_q - W, shape (rows, features).
        gram: G.

    Returns:
        Shapes (rows,) and (rows, features).
    """
    xp = array_namespace(error, gram)
    slope = xp.matmul(error, gram)
    return xp.sum(slope * error, axis=1), slope


def best_rows(
    found: QuantizedTensor, start: QuantizedTensor, weight: Array, gram: Array
) -> QuantizedTensor:
    """Return, row by row, whichever loses less: tr(E G E^T) of the row.

    So an algorithm that goes on from another one is never behind it.

    Args:
        found: New codes, on the grid of ``start``, or on one whose scales no two rows share.
        start: Codes of the algorithm before.
        weight: The float matrix, float32, shape (rows, features).
        gram: G.
    """
    xp = array_namespace(weight)
    mine, _ = output_error(found.dequantize() - weight, gram)
    theirs, _ = output_error(start.dequantize() - weight, gram)
    is_better = (mine < theirs)[:, None]
    codes = xp.where(is_better, found.codes, start.codes)
    scale, zero_point = found.params.scale, found.params.zero_point
    if found.params.spec.granularity != "tensor" and scale.shape[0] == codes.shape[0]:
        row = is_better if scale.ndim > 1 else is_better[:, 0]
        scale = xp.where(row, scale, start.params.scale)
        zero_point = xp.where(row, zero_point, start.params.zero_point)
    params = replace(found.params, scale=scale, zero_point=zero_point)
    return QuantizedTensor(codes, params, found.extra)


def unshrunk(
    found: QuantizedTensor, weight: Array, context: WeightContext
) -> QuantizedTensor:
    """Return the codes with scales under which outputs are as large as they were, row by row.

    tr(W_q G W^T) = tr(W G W^T). The least error is reached with numbers that lean towards zero: a
    cut range makes large weights smaller, and rounding inside it follows. Errors of either sign
    average out over a deep model, but outputs that shrink in each layer do not. Source: Banner et
    al. 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment",
    bias correction, which restores the norm of each channel's weights; here it is the size of what
    the inputs make of them. One product rows x features x features.

    Scales that are prescribed (by an algorithm before, too), shared between rows or numbers of a
    narrow format stay as they are.

    Args:
        found: Codes and parameters of a (rows, features) matrix.
        weight: The float matrix, float32.
        context: Has the Gram matrix.
    """
    is_given = context.params is not None or context.start is not None
    if context.gram is None or is_given or 0 in weight.shape:
        return found
    xp = array_namespace(weight)
    return grown(found, weight, xp.matmul(weight, context.gram))


def grown(found: QuantizedTensor, weight: Array, outputs: Array) -> QuantizedTensor:
    """Return the codes with each row's scales times <outputs, W> / <outputs, W_q>.

    Args:
        found: Codes and parameters of a (rows, features) matrix.
        weight: W, float32.
        outputs: What W stands for in the product: W G, or W times the features' importance.
    """
    spec = found.params.spec
    is_by_row = spec.granularity == "channel" or spec.granularity.startswith("group:")
    if not (is_by_row and has_movable_scales(spec)):
        return found
    growth = _shrinkage(weight, found.dequantize(), outputs)
    scale = found.params.scale
    if scale.ndim > 1:
        growth = growth[:, None]
    params, extra = rounded_scale(replace(found.params, scale=scale * growth))
    return QuantizedTensor(found.codes, params, extra)


def _shrinkage(weight: Array, rounded: Array, outputs: Array) -> Array:
    """Return by what the outputs of each row have shrunk, within a factor of two; shape (rows,)."""
    xp = array_namespace(weight)
    before = xp.sum(outputs * weight, axis=1)
    after = xp.sum(outputs * rounded, axis=1)
    usable = (before > 0) & (after > 0)
    one = xp.ones_like(before)
    ratio = before / xp.where(usable, after, one)
    return xp.where(usable, xp.clip(ratio, 0.5, 2.0), one)
