"""Attention. Source: the ONNX operator Attention-24."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .registry import Build, Kernel, compiled
from .softmax import masked_softmax

# What the fourth output holds, by attribute qk_matmul_output_mode.
_RAW, _CAPPED, _BIASED, _WEIGHTS = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class _Attention:
    """The attributes of an Attention node.

    Attributes:
        q_heads: Heads of the queries, where they come flat.
        kv_heads: Heads of keys and values, where they come flat.
        scale: Of the products; None for 1 / sqrt(size).
        cap: Soft cap of the scores; 0 for none.
        causal: A query looks at no later key.
        left: How many earlier keys a query looks at; below 0 for all.
        right: How many later keys a query looks at; below 0 for all.
        precise: Softmax of half precision is computed in float32.
        shown: Which stage of the scores the fourth output holds.
        outputs: How many.
    """

    q_heads: int
    kv_heads: int
    scale: float | None
    cap: float
    causal: bool
    left: int
    right: int
    precise: bool
    shown: int
    outputs: int

    @classmethod
    def read(cls, build: Build) -> _Attention:
        """Read a node."""
        outputs = build.node.outputs
        shows = len(outputs) > 3 and bool(outputs[3])
        return cls(
            build.get("q_num_heads", 0),
            build.get("kv_num_heads", 0),
            build.get("scale", None),
            build.get("softcap", 0.0),
            bool(build.get("is_causal", 0)),
            build.get("left_window_size", -1),
            build.get("right_window_size", -1),
            bool(build.get("softmax_precision", 0)),
            build.get("qk_matmul_output_mode", _RAW) if shows else _WEIGHTS,
            len(outputs),
        )


@compiled("Attention")
def attention(build: Build) -> Kernel:
    """ONNX Attention: softmax(scale Q K^T + mask) V.

    With grouped heads, caches, soft cap, causal and sliding windows.
    """
    return partial(_attention, _Attention.read(build))


def _attention(
    how: _Attention,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    past_key: Any = None,
    past_value: Any = None,
    lengths: Any = None,
) -> Any:
    is_flat = q.ndim == 3
    if is_flat:
        q = _heads(q, how.q_heads)
        k = _heads(k, how.kv_heads)
        v = _heads(v, how.kv_heads)
    if past_key is not None:
        k = np.concatenate((past_key, k), axis=2)
        v = np.concatenate((past_value, v), axis=2)
    present = k, v
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k = np.repeat(k, groups, axis=1)
        v = np.repeat(v, groups, axis=1)
    first = _first_position(q, past_key, lengths)
    weights, shown = _weights(how, q, k, mask, first, lengths)
    y = np.matmul(weights, v).astype(v.dtype, copy=False)
    if is_flat:
        batch, _, length, _ = y.shape
        y = y.transpose(0, 2, 1, 3).reshape(batch, length, -1)
    if how.outputs == 1:
        return y
    return (y, *present, shown)[: how.outputs]


def _weights(
    how: _Attention, q: Array, k: Array, mask: Any, first: Any, lengths: Any
) -> tuple[Array, Array]:
    """Return the weights of the values, and the stage of the scores that is put out."""
    shown: Array | None = None
    scores = _products(q, k, how.scale)
    if how.shown == _RAW:
        shown = scores.copy()
    if how.cap > 0:
        cap = scores.dtype.type(how.cap)
        scores = cap * np.tanh(scores / cap)
    if how.shown == _CAPPED:
        shown = scores.copy()
    if mask is not None:
        scores = _masked(scores, mask)
    queries, keys = scores.shape[-2:]
    allowed = _allowed(how, queries, keys, first)
    if allowed is not None:
        scores = _only(scores, allowed)
    if lengths is not None:
        is_valid = np.arange(keys) < lengths.reshape(-1, 1, 1, 1)
        scores = _only(scores, is_valid)
    if how.shown == _BIASED:
        shown = scores.copy()
    is_half = scores.dtype.itemsize < 4
    if is_half and how.precise:
        wide = scores.astype(np.float32)
    else:
        wide = np.array(scores)
    weights = masked_softmax(wide).astype(scores.dtype, copy=False)
    return weights, weights if shown is None else shown


def _heads(x: Array, count: int) -> Array:
    """(batch, length, heads * size) -> (batch, heads, length, size)."""
    batch, length = x.shape[:2]
    by_head = x.reshape(batch, length, count, -1)
    return by_head.transpose(0, 2, 1, 3)


def _first_position(q: Array, past_key: Any, lengths: Any) -> Any:
    """Return the position of the first query among the keys; the queries are the last ones."""
    if past_key is not None:
        return past_key.shape[2]
    if lengths is None:
        return 0
    queries = q.shape[2]
    return lengths.reshape(-1) - queries


def _products(q: Array, k: Array, scale: float | None) -> Array:
    """Return scale Q K^T."""
    if scale is None:
        scale = 1 / math.sqrt(q.shape[3])
    # The root of the scale on both sides keeps half precision in range, as the operator's
    # definition has it.
    root = q.dtype.type(math.sqrt(scale))
    transposed = (k * root).swapaxes(-1, -2)
    scores = np.matmul(q * root, transposed)
    return np.asarray(scores).astype(q.dtype, copy=False)


def _masked(scores: Array, mask: Array) -> Array:
    """Apply a mask: of booleans, or of numbers to add; keys beyond it are not looked at."""
    is_bool = mask.dtype == np.bool_
    missing = scores.shape[-1] - mask.shape[-1]
    if missing > 0:
        widths = [(0, 0)] * (mask.ndim - 1)
        hidden = False if is_bool else -np.inf
        mask = np.pad(mask, [*widths, (0, missing)], constant_values=hidden)
    if is_bool:
        return _only(scores, mask)
    return np.asarray(scores + mask.astype(scores.dtype))


def _only(scores: Array, allowed: Array) -> Array:
    nowhere = scores.dtype.type(-np.inf)
    return np.where(allowed, scores, nowhere)


def _allowed(how: _Attention, queries: int, keys: int, first: Any) -> Array | None:
    """Return where a query may look, None where everywhere.

    Args:
        how: The windows.
        queries: How many.
        keys: How many.
        first: Position of the first query among the keys, one or one for each sample.

    Returns:
        Booleans, (queries, keys) or (batch, 1, queries, keys).
    """
    if not how.causal and how.left < 0 and how.right < 0:
        return None
    positions = np.arange(queries)[:, None]
    distance = positions - np.arange(keys)[None, :]
    if np.ndim(first):
        distance = distance + np.reshape(first, (-1, 1, 1, 1))
    else:
        distance = distance + int(first)
    allowed = np.ones(distance.shape, np.bool_)
    if how.causal:
        allowed &= distance >= 0
    if how.left >= 0:
        allowed &= distance <= how.left
    if how.right >= 0:
        allowed &= -distance <= how.right
    return allowed
