"""Attention and rotary embedding. Source: the ONNX operators Attention-24 and RotaryEmbedding-23."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .parallel import scratch, spread
from .registry import Build, Kernel, compiled, operator


def _heads(x: np.ndarray, count: int) -> np.ndarray:
    """(batch, length, heads * size) -> (batch, heads, length, size)."""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(0, 2, 1, 3)


def _allowed(build: Build, queries: int, keys: int, offset: np.ndarray | int) -> np.ndarray | None:
    """Return where a query may look, (queries, keys) or (batch, 1, queries, keys); None where everywhere."""
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


def masked_softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in place; a row that may look nowhere (all -inf) becomes all zero."""
    top = x.max(axis=-1, keepdims=True)
    np.copyto(top, 0, where=np.isneginf(top))
    x -= top
    np.exp(x, out=x)
    total = x.sum(axis=-1, keepdims=True)
    np.copyto(total, 1, where=total == 0)
    x /= total
    return x


@compiled("Attention")
def attention(build: Build) -> Kernel:
    """softmax(scale Q K^T + mask) V, with grouped heads, caches, soft cap, causal and sliding windows."""
    q_heads, kv_heads = build.get("q_num_heads", 0), build.get("kv_num_heads", 0)
    given_scale = build.get("scale", None)
    cap, mode = build.get("softcap", 0.0), build.get("qk_matmul_output_mode", 0)
    wants = [i < len(build.node.outputs) and bool(build.node.outputs[i]) for i in range(4)]

    def run(
        q: Any, k: Any, v: Any, mask: Any = None, past_key: Any = None, past_value: Any = None, lengths: Any = None
    ) -> Any:  # fmt: skip
        flat = q.ndim == 3
        if flat:
            q, k, v = _heads(q, q_heads), _heads(k, kv_heads), _heads(v, kv_heads)
        kind = q.dtype.type
        if past_key is not None:
            k, v = np.concatenate((past_key, k), axis=2), np.concatenate((past_value, v), axis=2)
        present = k, v
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
        queries, keys = q.shape[2], k.shape[2]
        # The root of the scale on both sides keeps half precision in range, as the operator's definition has it.
        root = kind(
            math.sqrt(given_scale if given_scale is not None else 1 / math.sqrt(q.shape[3]))
        )
        scores = np.matmul(q * root, (k * root).swapaxes(-1, -2)).astype(q.dtype, copy=False)
        raw = scores.copy() if wants[3] and mode == 0 else None
        if cap > 0:
            scores = kind(cap) * np.tanh(scores / kind(cap))
        capped = scores.copy() if wants[3] and mode == 1 else None
        if past_key is None and lengths is not None:
            offset: Any = lengths.reshape(-1) - queries
        else:
            offset = 0 if past_key is None else past_key.shape[2]
        allowed = _allowed(build, queries, keys, offset)
        if mask is not None:
            if mask.shape[-1] < keys:
                fill = False if mask.dtype == np.bool_ else -np.inf
                mask = np.pad(
                    mask,
                    [(0, 0)] * (mask.ndim - 1) + [(0, keys - mask.shape[-1])],
                    constant_values=fill,
                )
            scores = (
                np.where(mask, scores, kind(-np.inf))
                if mask.dtype == np.bool_
                else scores + mask.astype(scores.dtype)
            )
        if allowed is not None:
            scores = np.where(allowed, scores, kind(-np.inf))
        if lengths is not None:
            valid = np.arange(keys) < lengths.reshape(-1, 1, 1, 1)
            scores = np.where(valid, scores, kind(-np.inf))
        biased = scores.copy() if wants[3] and mode == 2 else None
        wide = (
            scores.astype(np.float32)
            if scores.dtype.itemsize < 4 and build.get("softmax_precision", 0)
            else scores
        )
        weights = masked_softmax(np.array(wide)).astype(scores.dtype, copy=False)
        y = np.matmul(weights, v).astype(v.dtype, copy=False)
        if flat:
            y = y.transpose(0, 2, 1, 3).reshape(y.shape[0], queries, -1)
        seen = next((s for s in (raw, capped, biased) if s is not None), weights)
        return (y, *present, seen)[: len(build.node.outputs)] if len(build.node.outputs) > 1 else y

    return run


@operator("RotaryEmbedding")
def rotary_embedding(
    x: np.ndarray, cos: np.ndarray, sin: np.ndarray, positions: np.ndarray | None = None,
    *, interleaved: int = 0, num_heads: int = 0, rotary_embedding_dim: int = 0,
) -> Any:  # fmt: skip
    """Rotate pairs of features by their position: Su et al. 2021, section 3.4."""
    y = x.transpose(0, 2, 1, 3) if x.ndim == 4 else x.reshape(x.shape[0], x.shape[1], num_heads, -1)
    width = rotary_embedding_dim or y.shape[-1]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = np.expand_dims(cos, 2), np.expand_dims(sin, 2)
    turned = y[..., :width]
    a, b = (
        (turned[..., 0::2], turned[..., 1::2])
        if interleaved
        else (turned[..., : width // 2], turned[..., width // 2 :])
    )
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    pair = (
        np.stack((real, imaginary), axis=-1).reshape(turned.shape)
        if interleaved
        else np.concatenate((real, imaginary), axis=-1)
    )
    result = np.concatenate((pair, y[..., width:]), axis=-1)
    return result.transpose(0, 2, 1, 3) if x.ndim == 4 else result.reshape(x.shape)


@compiled("octavo.Attention", empty=True)
def fused_attention(build: Build) -> Kernel:
    """softmax(scale Q K^T + mask) V for (batch, heads, length, size), K^T given transposed; one sample at a time."""
    scale = np.float32(build.get("scale", 1.0))

    def run(
        q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None, *, empty: Any
    ) -> np.ndarray:
        if (
            q.ndim != 4
            or q.dtype != np.float32
            or q.shape[:2] != k.shape[:2]
            or q.shape[:2] != v.shape[:2]
        ):
            scores = np.matmul(q, k) * q.dtype.type(scale)
            return np.asarray(
                np.matmul(masked_softmax(scores if mask is None else scores + mask), v)
            ).astype(q.dtype, copy=False)
        batch, heads, length, _ = q.shape
        keys, size = k.shape[3], v.shape[3]
        # (batch, length, heads, size) memory: the transposition behind an attention is then a view, as is its reshape.
        out: np.ndarray = empty((batch, length, heads, size), np.float32)
        whole = (
            None
            if mask is None
            else np.broadcast_to(
                mask,
                (batch, *np.broadcast_shapes(mask.shape[1:], (1, 1, 1)))
                if mask.ndim == 4
                else mask.shape,
            )
        )

        def work(i: int) -> None:
            nbytes = heads * length * keys * 4
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


def _tops(scores: np.ndarray) -> np.ndarray:
    top = scores.max(axis=-1, keepdims=True)
    np.copyto(top, 0, where=np.isneginf(top))
    return np.asarray(top)
