"""Attention and rotary embedding. Source: ONNX operators Attention-24, RotaryEmbedding-23."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .parallel import scratch, spread
from .registry import Build, Kernel, compiled, operator


def _heads(x: Array, count: int) -> Array:
    """(batch, length, heads * size) -> (batch, heads, length, size)."""
    batch, length = x.shape[:2]
    return x.reshape(batch, length, count, -1).transpose(0, 2, 1, 3)


def _allowed(build: Build, queries: int, keys: int, offset: Array | int) -> Array | None:
    """Return where a query may look, None where everywhere.

    Args:
        build: The node, with its windows.
        queries: How many.
        keys: How many.
        offset: Position of the first query among the keys, one or one for each sample.

    Returns:
        Booleans, (queries, keys) or (batch, 1, queries, keys).
    """
    left, right = build.get("left_window_size", -1), build.get("right_window_size", -1)
    causal = build.get("is_causal", 0)
    if not causal and left < 0 and right < 0:
        return None
    distance = np.arange(queries)[:, None] - np.arange(keys)[None, :]
    if np.ndim(offset):
        distance = distance + np.reshape(offset, (-1, 1, 1, 1))
    else:
        distance = distance + int(offset)
    allowed = np.ones(distance.shape, np.bool_)
    if causal:
        allowed &= distance >= 0
    if left >= 0:
        allowed &= distance <= left
    if right >= 0:
        allowed &= -distance <= right
    return allowed


def _tops(scores: Array) -> Array:
    """Return each row's maximum; 0 for a row that may look nowhere (all -inf)."""
    top = scores.max(axis=-1, keepdims=True)
    np.copyto(top, 0, where=np.isneginf(top))
    return np.asarray(top)


def masked_softmax(x: Array) -> Array:
    """Softmax over the last axis, in place; a row that may look nowhere becomes all zero."""
    x -= _tops(x)
    np.exp(x, out=x)
    total = x.sum(axis=-1, keepdims=True)
    np.copyto(total, 1, where=total == 0)
    x /= total
    return x


def _masked(scores: Array, mask: Array) -> Array:
    """Apply a mask: of booleans, or of numbers to add; keys beyond it are not looked at."""
    is_bool = mask.dtype == np.bool_
    missing = scores.shape[-1] - mask.shape[-1]
    if missing > 0:
        widths = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
        mask = np.pad(mask, widths, constant_values=False if is_bool else -np.inf)
    if is_bool:
        return _only(scores, mask)
    return np.asarray(scores + mask.astype(scores.dtype))


def _only(scores: Array, allowed: Array) -> Array:
    return np.where(allowed, scores, scores.dtype.type(-np.inf))


# What the fourth output holds, by attribute qk_matmul_output_mode.
_RAW, _CAPPED, _BIASED = 0, 1, 2


@compiled("Attention")
def attention(build: Build) -> Kernel:
    """ONNX Attention: softmax(scale Q K^T + mask) V.

    With grouped heads, caches, soft cap, causal and sliding windows.
    """
    q_heads, kv_heads = build.get("q_num_heads", 0), build.get("kv_num_heads", 0)
    cap, mode = build.get("softcap", 0.0), build.get("qk_matmul_output_mode", _RAW)
    outputs = build.node.outputs
    wants_scores = len(outputs) > 3 and bool(outputs[3])
    precise = build.get("softmax_precision", 0)

    def run(
        q: Any, k: Any, v: Any, mask: Any = None, past_key: Any = None, past_value: Any = None, lengths: Any = None
    ) -> Any:  # fmt: skip
        is_flat = q.ndim == 3
        if is_flat:
            q, k, v = _heads(q, q_heads), _heads(k, kv_heads), _heads(v, kv_heads)
        if past_key is not None:
            k = np.concatenate((past_key, k), axis=2)
            v = np.concatenate((past_value, v), axis=2)
        present = k, v
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
        queries, keys = q.shape[2], k.shape[2]
        seen: dict[int, Array] = {}

        def show(stage: int) -> None:
            if wants_scores and mode == stage:
                seen[stage] = scores.copy()

        scores = _products(q, k, build.get("scale", None))
        show(_RAW)
        if cap > 0:
            kind = scores.dtype.type
            scores = kind(cap) * np.tanh(scores / kind(cap))
        show(_CAPPED)
        offset = _first_position(queries, past_key, lengths)
        if mask is not None:
            scores = _masked(scores, mask)
        allowed = _allowed(build, queries, keys, offset)
        if allowed is not None:
            scores = _only(scores, allowed)
        if lengths is not None:
            scores = _only(scores, np.arange(keys) < lengths.reshape(-1, 1, 1, 1))
        show(_BIASED)
        is_half = scores.dtype.itemsize < 4
        wide = scores.astype(np.float32) if is_half and precise else np.array(scores)
        weights = masked_softmax(wide).astype(scores.dtype, copy=False)
        y = np.matmul(weights, v).astype(v.dtype, copy=False)
        if is_flat:
            y = y.transpose(0, 2, 1, 3).reshape(y.shape[0], queries, -1)
        if len(outputs) == 1:
            return y
        return (y, *present, seen.get(mode, weights))[: len(outputs)]

    return run


def _products(q: Array, k: Array, scale: float | None) -> Array:
    """Return scale Q K^T."""
    if scale is None:
        scale = 1 / math.sqrt(q.shape[3])
    # The root of the scale on both sides keeps half precision in range, as the operator's
    # definition has it.
    root = q.dtype.type(math.sqrt(scale))
    scores = np.matmul(q * root, (k * root).swapaxes(-1, -2))
    return np.asarray(scores).astype(q.dtype, copy=False)


def _first_position(queries: int, past_key: Any, lengths: Any) -> Any:
    """Return the position of the first query among the keys; the queries are the last ones."""
    if past_key is not None:
        return past_key.shape[2]
    return 0 if lengths is None else lengths.reshape(-1) - queries


@operator("RotaryEmbedding")
def rotary_embedding(
    x: Array, cos: Array, sin: Array, positions: Array | None = None,
    *, interleaved: int = 0, num_heads: int = 0, rotary_embedding_dim: int = 0,
) -> Any:  # fmt: skip
    """ONNX RotaryEmbedding: rotate pairs of features by their position.

    Source: Su et al. 2021, section 3.4.
    """
    has_heads = x.ndim == 4
    # (batch, length, heads, size)
    y = x.transpose(0, 2, 1, 3) if has_heads else x.reshape(*x.shape[:2], num_heads, -1)
    width = rotary_embedding_dim or y.shape[-1]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = np.expand_dims(cos, 2), np.expand_dims(sin, 2)
    turned = y[..., :width]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned[..., : width // 2], turned[..., width // 2 :]
    real = cos * a - sin * b
    imaginary = sin * a + cos * b
    if interleaved:
        pairs = np.stack((real, imaginary), axis=-1).reshape(turned.shape)
    else:
        pairs = np.concatenate((real, imaginary), axis=-1)
    result = np.concatenate((pairs, y[..., width:]), axis=-1)
    return result.transpose(0, 2, 1, 3) if has_heads else result.reshape(x.shape)


@compiled("octavo.Attention", empty=True)
def fused_attention(build: Build) -> Kernel:
    """softmax(scale Q K^T + mask) V, what the optimiser makes of the operators of an attention.

    For (batch, heads, length, size), K^T given transposed; one sample at a time.
    """
    scale = np.float32(build.get("scale", 1.0))

    def run(q: Array, k: Array, v: Array, mask: Array | None = None, *, empty: Any) -> Array:
        is_plain = q.ndim == 4 and q.dtype == np.float32
        if not is_plain or q.shape[:2] != k.shape[:2] or q.shape[:2] != v.shape[:2]:
            return _broadcast_attention(q, k, v, mask, scale)
        batch, heads, length, _ = q.shape
        keys, size = k.shape[3], v.shape[3]
        # (batch, length, heads, size) memory: the transposition behind an attention is then a
        # view, as is its reshape.
        out: Array = empty((batch, length, heads, size), np.float32)
        whole = None if mask is None else _for_each_sample(mask, batch)
        nbytes = heads * length * keys * 4

        def work(i: int) -> None:
            scores = scratch(nbytes)[:nbytes].view(np.float32).reshape(heads, length, keys)
            np.matmul(q[i] * scale, k[i], out=scores)
            if whole is not None:
                scores += whole[i] if whole.ndim == 4 else whole
            np.subtract(scores, _tops(scores), out=scores)
            np.exp(scores, out=scores)
            total = scores.sum(axis=-1, keepdims=True)
            np.copyto(total, 1, where=total == 0)
            target = out[i].transpose(1, 0, 2)
            np.matmul(scores, v[i], out=target)
            target /= total  # fewer divisions here than on the scores

        spread(batch, work, build.threads)
        return out.transpose(0, 2, 1, 3)

    return run


def _broadcast_attention(q: Array, k: Array, v: Array, mask: Any, scale: np.float32) -> Array:
    """Attention of any rank and type, with whatever broadcasting the products do."""
    scores = np.matmul(q, k) * q.dtype.type(scale)
    weights = masked_softmax(scores if mask is None else scores + mask)
    return np.asarray(np.matmul(weights, v)).astype(q.dtype, copy=False)


def _for_each_sample(mask: Array, batch: int) -> Array:
    """Return a mask of four axes for each sample of the batch; any other as it is."""
    if mask.ndim != 4:
        return np.broadcast_to(mask, mask.shape)
    rest = np.broadcast_shapes(mask.shape[1:], (1, 1, 1))
    return np.broadcast_to(mask, (batch, *rest))
