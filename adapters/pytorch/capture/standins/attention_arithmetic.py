"""Attention between projections, as a function that graphs hold as one node."""

from __future__ import annotations

import math

import torch
from torch import nn

Tensor = torch.Tensor
_Three = tuple[Tensor, Tensor, Tensor]
_More = tuple[Tensor | None, Tensor | None, bool]


def attend(
    projected: _Three,
    masks: tuple[Tensor | None, Tensor | None, bool],
    more: _More,
    form: tuple[int, bool, float],
    need_weights: bool,
    average: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return softmax(q k^T / sqrt(d) + mask) v (Vaswani et al. 2017, eq. 1), and the softmax.

    The first is in the layout of ``q``, the second only if it is asked for.

    Args:
        projected: q, k and v: (steps, features), or with a batch axis first or second.
        masks: Padding of the keys, mask of the scores (boolean: True is left out; or added), and
            whether that is called causal.
        more: A key and a value that every sequence gets, and whether it gets a pair of zeros.
        form: Heads, whether the batch axis comes first, dropout.
        need_weights: Return the softmax too.
        average: Average it over the heads.

    Raises:
        ValueError: Called causal without a mask of the scores.
    """
    padding, mask, causal = masks
    heads, batch_first, dropout = form
    if causal and mask is None:
        raise ValueError("is_causal is a hint about attn_mask: give attn_mask too")
    alone = projected[0].dim() == 2
    batched = [_batch_first(p, alone, batch_first) for p in projected]
    steps = batched[1].shape[1]
    q, k, v = _in_heads(batched, more, heads)
    bias = _bias(padding, mask, q, steps)
    if bias is not None:
        # What every sequence gets beside its own steps is never masked.
        added = k.shape[2] - steps
        bias = nn.functional.pad(bias, (0, added))
    weights = None
    if need_weights:
        weights = _weights(q, k, bias)
        kept = nn.functional.dropout(weights, dropout, dropout > 0.0)
        y = kept @ v
        weights = _told(weights, average, alone)
    else:
        y = nn.functional.scaled_dot_product_attention(q, k, v, bias, dropout)
    y = y.transpose(1, 2)
    y = y.flatten(2)
    return _as_given(y, alone, batch_first), weights


def _told(weights: Tensor, average: bool, alone: bool) -> Tensor:
    """Return attention weights (batch, heads, steps, steps) as callers take them."""
    if average:
        weights = weights.mean(1)
    return weights.squeeze(0) if alone else weights


def _as_given(value: Tensor, alone: bool, batch_first: bool) -> Tensor:
    """Return (batch, steps, features) in the layout of the inputs."""
    if alone:
        return value.squeeze(0)
    return value if batch_first else value.transpose(0, 1)


def _batch_first(value: Tensor, alone: bool, batch_first: bool) -> Tensor:
    """Return a value as (batch, steps, features)."""
    if alone:
        return value.unsqueeze(0)
    return value if batch_first else value.transpose(0, 1)


def _in_heads(batched: list[Tensor], more: _More, heads: int) -> _Three:
    """Return q, k and v as (batch, heads, steps, features), with what every sequence gets."""
    q, k, v = batched
    more_key, more_value, has_zeros = more
    if more_key is not None and more_value is not None:
        k = _with_step(k, more_key)
        v = _with_step(v, more_value)
    q = _split(q, heads)
    k = _split(k, heads)
    v = _split(v, heads)
    if has_zeros:
        k = nn.functional.pad(k, (0, 0, 0, 1))
        v = nn.functional.pad(v, (0, 0, 0, 1))
    return q, k, v


def _with_step(value: Tensor, step: Tensor) -> Tensor:
    """Return (batch, steps, features) with one more step, the same for all."""
    each = step.expand(value.shape[0], 1, -1)
    return torch.cat([value, each], 1)


def _split(value: Tensor, heads: int) -> Tensor:
    n, steps, features = value.shape
    # Widths are written out, since there may be no samples and no steps.
    width = features // heads
    split = value.reshape(n, steps, heads, width)
    return split.transpose(1, 2)


def _bias(
    padding: Tensor | None, mask: Tensor | None, q: Tensor, steps: int
) -> Tensor | None:
    """Return what is added to the scores, for so many steps of the keys; None for nothing."""
    n, heads, queries = q.shape[:3]
    by_key = None
    if padding is not None:
        by_key = _added(padding, q.dtype)
        by_key = by_key.reshape(n, 1, 1, steps)
    by_score = None
    if mask is not None:
        by_score = _added(mask, q.dtype)
        # Such a mask has one for each sample and head, in one axis.
        if mask.dim() == 3:
            by_score = by_score.reshape(n, heads, queries, steps)
    if by_key is None or by_score is None:
        return by_score if by_key is None else by_key
    return by_key + by_score


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    scale = math.sqrt(1.0 / q.shape[-1])
    keys = k.transpose(-2, -1)
    scores = q * scale @ keys
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, -1)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add to the scores."""
    if mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros_like(mask, dtype=dtype)
    return zeros.masked_fill_(mask, -math.inf)
