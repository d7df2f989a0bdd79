"""What AutoRound and AdaRound share: the layer's output error and its gradient, on a Gram matrix and without autograd."""

from __future__ import annotations

from array_api_compat import array_namespace

from ..numerics.affine import Array


def normalised(gram: Array) -> Array:
    """Return the Gram matrix divided by the mean of its diagonal, so that step sizes do not depend on the data's scale."""
    xp = array_namespace(gram)
    mean = xp.mean(xp.linalg.diagonal(gram))
    return gram / xp.where(mean > 0, mean, xp.ones_like(mean))


def output_error(error: Array, gram: Array) -> tuple[Array, Array]:
    """Return (loss of each row, half the gradient) of tr(E G E^T), E = W_q - W of shape (rows, features).

    The gradient with respect to W_q is 2 E G; shapes (rows,) and (rows, features).
    """
    xp = array_namespace(error, gram)
    slope = xp.matmul(error, gram)
    return xp.sum(slope * error, axis=1), slope
