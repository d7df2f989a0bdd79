"""Which distance fits a model's outputs: by what is asked, by the graph, and by the outputs.

The order, for each floating-point output:

1. Rows that are probabilities (a final softmax) are compared as such.
2. A name says it: ``logits``; ``embedding``, ``hidden`` and the like.
3. A model of integer tokens whose output has a column for each word of its vocabulary predicts
   words. Where some outputs do, these alone count: what it hands on beside them is not compared.
4. Rows of length 1 are embeddings, and so are a token model's outputs of its embedding's width.
5. Other outputs of token models, and rows of a model with convolutions, are a classifier's logits
   where there are at least two columns.
6. Other rows are logits if their columns are of one size and their common shift, which a softmax
   does not see and training does not move, is small.
7. What is left is numbers: each channel's difference as a share of its variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from octavo.core.contract.adapter import Batch
from octavo.core.contract.output_metric import (
    OutputKind,
    OutputMetric,
    as_rows,
    count_of_rows,
    mask_of_rows,
)
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.calls import parts
from octavo.core.values.graph import ModelView
from octavo.core.values.trees import is_array, leaves

AskedMetric = Literal["auto", "kl", "cosine", "variance"]
"""The setting ``output_metric``."""

Arrays = Sequence[np.ndarray]

PREDICTIONS = ("logit",)
EMBEDDINGS = ("embed", "hidden", "pooler", "feature", "sentence")
"""Parts of names that say what an output is."""

FEW_ROWS = 8
"""Rows below which a channel's variance says nothing: that of the whole output stands in."""

FAINTEST = 1e-3
"""Share of a channel's own size that its spread counts as at least: a channel that hardly changes
over a few batches would else outweigh all others."""

ONE_SIZE = 10.0
"""Ratio of the largest and smallest spread of columns up to which they may be logits."""

SMALL_SHIFT = 0.2
"""Variance of the rows' mean, times the columns, over the columns' mean variance: independent
columns have 1. The gradients of a softmax's loss add up to 0 over the columns, so that training
leaves the sum where it was while differences grow: a trained classifier has a few hundredths."""

_MEANINGS = {
    "kl": "Kullback-Leibler divergence of the predictions",
    "probabilities": "Kullback-Leibler divergence of the probabilities",
    "cosine": "cosine",
    "variance": "squared difference by variance",
}


def fitted(
    view: ModelView, batches: Sequence[Batch], outputs: Sequence[Arrays], asked: str
) -> OutputMetric:
    """Return the metric that fits a model.

    Args:
        view: The model.
        batches: Batches.
        outputs: The float model's outputs for each of them.
        asked: One of :data:`AskedMetric`.
    """
    masks = [_mask(view, batch) for batch in batches]
    floats = [tuple(y for y in found if _is_float(y)) for found in outputs]
    number = min((len(found) for found in floats), default=0)
    names = _names(view, outputs[0]) if outputs else []
    kinds: list[OutputKind] = []
    for place in range(number):
        every = [found[place] for found in floats]
        kinds.append(_kind(view, names[place], every, asked))
    if asked == "auto":
        kinds = _alone(view, kinds, [y.shape for y in floats[0]] if floats else [])
    axes = [_axis(floats[0][place]) for place in range(number)]
    spreads: list[np.ndarray | None] = []
    rows: list[float] = []
    for place, (kind, axis) in enumerate(zip(kinds, axes, strict=True)):
        every = [found[place] for found in floats]
        spreads.append(_spread(every, axis, masks) if kind == "variance" else None)
        rows.append(_rows(every, axis, masks))
    return OutputMetric(
        tuple(kinds), tuple(spreads), tuple(axes), tuple(rows), tuple(masks)
    )


def told(metric: OutputMetric, asked: str) -> str:
    """Say in one line how outputs are compared, and how to say otherwise."""
    names = [_MEANINGS[metric.kinds[place]] for place in metric.counted]
    each = (
        ", ".join(dict.fromkeys(names)) or "nothing: no output is a floating-point one"
    )
    by = "as asked" if asked != "auto" else "output_metric says otherwise"
    return f"outputs are compared by {each} ({by})"


def _kind(view: ModelView, name: str, every: Arrays, asked: str) -> OutputKind:
    """Return how one output is compared.

    Args:
        view: The model.
        name: The output's.
        every: It, for each batch.
        asked: The setting.
    """
    first = every[0]
    columns = first.shape[_axis(first)] if first.ndim > 1 else 1
    are_odds = columns > 1 and _are_odds(every)
    if asked == "variance":
        return "variance"
    if columns < 2:
        return "variance"
    if asked == "cosine":
        return "cosine"
    if are_odds:
        return "probabilities"
    if asked == "kl":
        return "kl"
    return _by_model(view, name.lower(), every, columns)


def _by_model(view: ModelView, name: str, every: Arrays, columns: int) -> OutputKind:
    """Return how an output of several columns that are no probabilities is compared."""
    first = every[0]
    if any(part in name for part in PREDICTIONS):
        return "kl"
    if any(part in name for part in EMBEDDINGS):
        return "cosine"
    tables = _tables(view)
    takes_tokens = any("int" in given.dtype for given in view.inputs)
    if tables and takes_tokens:
        return _of_tokens(tables, every, columns)
    if first.ndim > 3:
        return "variance"
    if _are_unit(every):
        return "cosine"
    has_convolutions = any(op.type == "conv" for op in view.ops)
    if has_convolutions and first.ndim == 2:
        return _of_images(view, every, columns)
    return "kl" if _may_be_logits(every) else "variance"


def _of_tokens(
    tables: Sequence[tuple[int, int]], every: Arrays, columns: int
) -> OutputKind:
    """Return how an output of a model is compared that looks tokens up.

    Args:
        tables: (words, width) of each embedding.
        every: The output.
        columns: Its columns.
    """
    if columns == max(words for words, _ in tables):
        return "kl"
    is_wide = any(columns == width for _, width in tables)
    return "cosine" if is_wide or _are_unit(every) else "kl"


def _of_images(view: ModelView, every: Arrays, columns: int) -> OutputKind:
    """Return how rows of a model with convolutions are compared: logits behind a classifier."""
    weighted = [op for op in view.ops if op.weight is not None]
    last = weighted[-1].weight
    assert last is not None
    is_head = last.shape[last.channel_axis] == columns
    if not is_head:
        return "cosine"
    return "kl" if _are_of_one_size(every) else "variance"


def _alone(
    view: ModelView, kinds: list[OutputKind], shapes: Sequence[tuple[int, ...]]
) -> list[OutputKind]:
    """Leave out what a language model hands on beside its predictions."""
    words = max((rows for rows, _ in _tables(view)), default=0)
    predicts = [
        kind == "kl" and shape[-1] == words
        for kind, shape in zip(kinds, shapes, strict=False)
    ]
    if not any(predicts):
        return kinds
    return [
        kind if is_one else "none" for kind, is_one in zip(kinds, predicts, strict=True)
    ]


def _tables(view: ModelView) -> list[tuple[int, int]]:
    """Return (rows, width) of each table that integers are looked up in."""
    shapes = [
        op.weight.shape for op in view.ops if op.type == "embedding" and op.weight
    ]
    return [(shape[0], shape[1]) for shape in shapes if len(shape) == 2]


def _names(view: ModelView, outputs: Arrays) -> list[str]:
    """Return the names of the floating-point outputs."""
    names = list(view.outputs)
    names += [""] * (len(outputs) - len(names))
    return [n for n, y in zip(names, outputs, strict=False) if _is_float(y)]


def _is_float(y: np.ndarray) -> bool:
    return bool(np.issubdtype(y.dtype, np.floating))


def _axis(y: np.ndarray) -> int:
    """Return the axis of channels: the second of images, the last of all others."""
    return 1 if y.ndim > 3 else max(0, y.ndim - 1)


def _stacked(every: Arrays, axis: int) -> np.ndarray:
    return np.concatenate([as_rows(y, axis) for y in every])


def _are_odds(every: Arrays) -> bool:
    first = every[0]
    if float(first.min(initial=0.0)) < 0.0 or first.ndim > 3:
        return False
    sums = first.sum(axis=-1, dtype=np.float64)
    return bool(first.size) and bool(np.abs(sums - 1.0).max() < 1e-3)


def _are_unit(every: Arrays) -> bool:
    first = every[0].astype(np.float64)
    lengths = np.linalg.norm(first, axis=-1)
    return bool(first.size) and bool(np.abs(lengths - 1.0).max() < 1e-3)


def _are_of_one_size(every: Arrays) -> bool:
    spreads = _stacked(every, -1).std(axis=0, dtype=np.float64)
    return bool(spreads.max() <= ONE_SIZE * spreads.min())


def _may_be_logits(every: Arrays) -> bool:
    """Return whether columns look like logits; see the module's text, 6."""
    rows = _stacked(every, -1).astype(np.float64)
    if len(rows) < FEW_ROWS or not _are_of_one_size(every):
        return False
    shift = float(rows.mean(axis=1).var()) * rows.shape[1]
    is_small = shift < SMALL_SHIFT * float(rows.var(axis=0).mean())
    return bool(is_small)


def _spread(every: Arrays, axis: int, masks: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return the variance of each channel over the rows that count, (channels,) float32."""
    rows = []
    for y, mask in zip(every, masks, strict=True):
        kept = mask_of_rows(mask, y.shape, axis)
        flat = as_rows(y, axis).astype(np.float64)
        rows.append(flat if kept is None else flat[kept > 0])
    flat = np.concatenate(rows)
    spread = flat.var(axis=0)
    if len(flat) < FEW_ROWS:
        spread = np.full_like(spread, flat.var())
    least = FAINTEST**2 * np.square(flat).mean(axis=0)
    found: np.ndarray = np.maximum(spread, least).astype(np.float32)
    return found


def _rows(every: Arrays, axis: int, masks: Sequence[np.ndarray | None]) -> float:
    """Return how many rows count, a mean over the batches."""
    total = 0.0
    for y, mask in zip(every, masks, strict=True):
        kept = mask_of_rows(mask, y.shape, axis)
        whole = count_of_rows(y.shape, axis)
        total += whole if kept is None else float(kept.sum())
    return total / max(1, len(every))


def _mask(view: ModelView, batch: Batch) -> np.ndarray | None:
    """Return which tokens of a batch are no padding, (samples, tokens); None where all count."""
    args, kwargs = parts(batch)
    given: Mapping[str, object] = {
        **{i.name: value for i, value in zip(view.inputs, args, strict=False)},
        **kwargs,
    }
    for name, value in given.items():
        if "mask" not in name.lower():
            continue
        for _, leaf in leaves(value, name):
            if not is_array(leaf):
                continue
            mask = to_numpy(leaf)
            is_mask = mask.ndim == 2 and bool(((mask == 0) | (mask == 1)).all())
            if is_mask and mask.any():
                return np.asarray(mask != 0)
    return None
