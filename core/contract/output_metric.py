"""What a change of a model's outputs costs: the distance D that fits what the outputs mean.

Four kinds, each a mean over rows (a row is one sample, or one token), with the Hessian H that D has
over the outputs where nothing is changed, so that a small change d costs D = d^T H d / 2:

* ``kl``: outputs are logits. D is the Kullback-Leibler divergence of the predictions; H is the
  Fisher metric diag(p) - p p^T, and D = (sum p d^2 - (sum p d)^2) / 2 to second order.
* ``probabilities``: outputs are probabilities; the same divergence, of them.
* ``cosine``: outputs are embeddings. D is 1 less the cosine.
* ``variance``: outputs are numbers. D is the mean over channels of the squared difference, each as
  a share of that channel's variance.

Written once for arrays of any library: adapters pass tensors that carry gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import numpy as np
from array_api_compat import array_namespace

from octavo.core.numerics.affine import Array

from .output_losses import (
    TINY,
    across,
    divergence,
    label_gradient,
    like,
    logarithm,
    precision,
    share_of_variance,
    turned,
)

OutputKind = Literal["kl", "probabilities", "cosine", "variance", "none"]
"""How one output is compared; ``none``: it is not."""

OUTPUT_KINDS: tuple[str, ...] = get_args(OutputKind)

_KL: OutputKind = "kl"
_NONE: OutputKind = "none"
_VARIANCE: OutputKind = "variance"

BLOCK = 2**18
"""Elements that are compared at once: what is computed of them stays in a processor's cache."""


@dataclass(frozen=True)
class OutputMetric:
    """How the outputs of one model over some batches are compared.

    Attributes:
        kinds: Of each floating-point output, in order.
        spreads: Likewise; for ``variance`` the float32 variance of each channel (0 for a channel
            that is left out), else None.
        axes: Axis of the channels of each output.
        rows: Rows of each output that count, a mean over the batches.
        masks: For each batch, which rows count, (samples, tokens); None for all. Outputs of other
            leading dimensions have no row masked.
    """

    kinds: tuple[OutputKind, ...]
    spreads: tuple[np.ndarray | None, ...]
    axes: tuple[int, ...]
    rows: tuple[float, ...]
    masks: tuple[np.ndarray | None, ...]

    @property
    def counted(self) -> tuple[int, ...]:
        """Places of the outputs that count."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind != "none")

    def weight(self, place: int) -> float:
        """Return what one row of an output adds to the distance: outputs count alike."""
        return 1.0 / (max(self.rows[place], 1.0) * len(self.counted))

    def row_losses(self, place: int, changed: Array, own: Array, batch: int) -> Array:
        """Return the distance of each row, (rows,) float32; 0 for rows that do not count.

        Args:
            place: Which floating-point output.
            changed: It, of a changed model.
            own: It, of the float model; gradients are not taken with respect to it.
            batch: Number of the batch.
        """
        axis = self.axes[place]
        losses = self._of_rows(place, as_rows(changed, axis), as_rows(own, axis))
        kept = self._kept(own, place, batch)
        if kept is None:
            return losses
        return losses * like(kept, losses)

    def losses(
        self, place: int, changed: np.ndarray, own: np.ndarray, batch: int
    ) -> float:
        """Return the sum of an output's rows, block by block, added up in float64.

        Args:
            place: Which floating-point output.
            changed: It, of a changed model.
            own: It, of the float model.
            batch: Number of the batch.
        """
        axis = self.axes[place]
        y = as_rows(changed, axis)
        y0 = as_rows(own, axis)
        if y.shape != y0.shape:
            return float("inf")
        kept = self._kept(own, place, batch)
        step = max(1, BLOCK // max(1, y.shape[1]))
        total = 0.0
        for start in range(0, len(y), step):
            part = slice(start, start + step)
            of_rows = self._of_rows(place, y[part], y0[part])
            if kept is not None:
                # A row that is no token may hold anything.
                of_rows = np.where(kept[part] > 0, of_rows, 0.0)
            total += float(of_rows.sum(dtype=np.float64))
        return total

    def distance(self, changed: list[Array], own: list[Array], batch: int) -> Array:
        """Return a batch's part of D, a scalar array; the mean over the batches is D.

        Args:
            changed: The floating-point outputs of a changed model, in order.
            own: The float model's.
            batch: Number of the batch.
        """
        parts = []
        for place in self.counted:
            losses = self.row_losses(place, changed[place], own[place], batch)
            xp = array_namespace(losses)
            parts.append(xp.sum(losses) * self.weight(place))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def draw(self, place: int, own: Array, batch: int, seed: int) -> Array:
        """Return a random g of an output's shape, float32, with E[g g^T] = H.

        For predictions it is the gradient of the loss at labels that are sampled from them.

        Args:
            place: Which floating-point output.
            own: It, of the float model.
            batch: Number of the batch.
            seed: Of the draw.
        """
        # Drawn on the CPU, so that a seed gives the same draw on every device.
        random = np.random.default_rng([seed, batch, place])
        y0 = as_rows(own, self.axes[place])
        kind = self.kinds[place]
        if kind in ("kl", "probabilities"):
            g = label_gradient(y0, random, are_odds=kind == "probabilities")
        else:
            noise = random.standard_normal(tuple(y0.shape), dtype=np.float32)
            g = like(noise, y0)
            if kind == "cosine":
                g = across(g, y0)
            else:
                g = g * like(precision(self.spreads[place]), y0)
        g = g * self.weight(place) ** 0.5
        kept = self._kept(own, place, batch)
        if kept is not None:
            g = g * like(kept, g)[:, None]
        return _as_output(g, own, self.axes[place])

    def _of_rows(self, place: int, y: Array, y0: Array) -> Array:
        """Return the distance of each of some rows of an output."""
        kind = self.kinds[place]
        if kind == "kl":
            return divergence(y, y0)
        if kind == "probabilities":
            return divergence(logarithm(y), logarithm(y0))
        if kind == "cosine":
            return turned(y, y0)
        return share_of_variance(y, y0, self.spreads[place])

    def _kept(self, own: Array, place: int, batch: int) -> np.ndarray | None:
        """Return 1 for rows that count and 0 for the others, (rows,); None where all count."""
        mask = self.masks[batch] if batch < len(self.masks) else None
        return mask_of_rows(mask, tuple(own.shape), self.axes[place])


def mask_of_rows(
    mask: np.ndarray | None, shape: tuple[int, ...], axis: int
) -> np.ndarray | None:
    """Return which rows of an output count, (rows,) float32; None where all do.

    Args:
        mask: Which tokens count, (samples, tokens).
        shape: Of the output.
        axis: Of its channels.
    """
    if mask is None or len(shape) != 3 or axis % 3 != 2:
        return None
    if mask.shape != shape[:2]:
        return None
    return np.asarray(mask, dtype=np.float32).reshape(-1)


def as_rows(x: Array, axis: int) -> Array:
    """Return an output as (rows, channels), float32; numbers alone are rows of one channel."""
    xp = array_namespace(x)
    x = xp.astype(x, xp.float32)
    if x.ndim < 2:
        return xp.reshape(x, (-1, 1))
    last = xp.moveaxis(x, axis, -1)
    return xp.reshape(last, (-1, last.shape[-1]))


def _as_output(rows: Array, output: Array, axis: int) -> Array:
    """Return (rows, channels) in the shape of an output."""
    xp = array_namespace(rows)
    shape = list(output.shape)
    if len(shape) < 2:
        return xp.reshape(rows, tuple(shape))
    channels = shape.pop(axis)
    moved = xp.reshape(rows, (*shape, channels))
    return xp.moveaxis(moved, -1, axis)


def count_of_rows(shape: tuple[int, ...], axis: int) -> int:
    """Return how many rows an output of a shape has."""
    if len(shape) < 2:
        return prod(shape)
    return prod(shape) // max(1, shape[axis])


def plain(outputs: list[Array], vocabulary: int) -> OutputMetric:
    """Return the metric of one batch's outputs that needs no knowledge of the model.

    That is the divergence of predictions where outputs are of ``vocabulary`` columns, a mean over
    tokens, and else the squared difference as half a share of the variance of all outputs together.

    Args:
        outputs: The float model's, floating-point ones.
        vocabulary: Rows of its largest embedding; 0 where there is none.
    """
    axes = tuple(max(0, y.ndim - 1) for y in outputs)
    rows = [
        count_of_rows(tuple(y.shape), a) for y, a in zip(outputs, axes, strict=True)
    ]
    none = (None,) * len(outputs)
    predicts = [y.ndim == 3 and y.shape[-1] == vocabulary for y in outputs]
    kinds: tuple[OutputKind, ...]
    if any(predicts):
        kinds = tuple(_KL if is_one else _NONE for is_one in predicts)
        return OutputMetric(kinds, none, axes, tuple(map(float, rows)), ())
    whole = 0.0
    for y in outputs:
        flat = as_rows(y, -1)
        xp = array_namespace(flat)
        centred = flat - xp.mean(flat)
        whole += float(xp.sum(centred * centred))
    spreads = []
    for y, count in zip(outputs, rows, strict=True):
        channels = y.shape[-1] if y.ndim > 1 else 1
        # Rows and outputs are averaged elsewhere: what is left of the whole for one number.
        spread = 2.0 * max(whole, TINY) / (count * channels * len(outputs))
        spreads.append(np.full(channels, spread, dtype=np.float32))
    kinds = (_VARIANCE,) * len(outputs)
    return OutputMetric(kinds, tuple(spreads), axes, tuple(map(float, rows)), ())
