"""What the optimiser makes of an attention that is written out, and rotary embedding.

Source: the ONNX operator RotaryEmbedding-23.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .parallel import scratch, spread
from .registry import Build, Kernel, compiled, operator
from .softmax import masked_softmax, tops_of, totals_of


@compiled("octavo.Attention", empty=True)
def fused_attention(build: Build) -> Kernel:
    """softmax(scale Q K^T + mask) V, one sample at a time.

    For (batch, heads, length, size), K^T given transposed.
    """
    scale = np.float32(build.get("scale", 1.0))
    return partial(_fused_attention, scale, build.threads)


def _fused_attention(
    scale: np.float32,
    threads: int,
    q: Array,
    k: Array,
    v: Array,
    mask: Any = None,
    *,
    empty: Any,
) -> Array:
    stack = q.shape[:2]
    is_plain = q.ndim == 4 and q.dtype == np.float32
    if not is_plain or stack != k.shape[:2] or stack != v.shape[:2]:
        return _broadcast_attention(q, k, v, mask, scale)
    batch, heads, length, _ = q.shape
    keys = k.shape[3]
    size = v.shape[3]
    # (batch, length, heads, size) memory: the transposition behind an attention is then a view, as
    # is its reshape.
    out: Array = empty((batch, length, heads, size), np.float32)
    whole = None if mask is None else _for_each_sample(mask, batch)
    nbytes = heads * length * keys * 4

    def work(i: int) -> None:
        memory = scratch(nbytes)[:nbytes].view(np.float32)
        scores = memory.reshape(heads, length, keys)
        np.matmul(q[i] * scale, k[i], out=scores)
        if whole is not None:
            scores += whole[i] if whole.ndim == 4 else whole
        scores -= tops_of(scores)
        np.exp(scores, out=scores)
        target = out[i].transpose(1, 0, 2)
        np.matmul(scores, v[i], out=target)
        target /= totals_of(scores)  # fewer divisions here than on the scores

    spread(batch, work, threads)
    return out.transpose(0, 2, 1, 3)


def _broadcast_attention(
    q: Array, k: Array, v: Array, mask: Any, scale: np.float32
) -> Array:
    """Attention of any rank and type, with whatever broadcasting the products do."""
    scores = np.matmul(q, k) * q.dtype.type(scale)
    if mask is not None:
        scores = scores + mask
    y = np.matmul(masked_softmax(scores), v)
    return np.asarray(y).astype(q.dtype, copy=False)


def _for_each_sample(mask: Array, batch: int) -> Array:
    """Return a mask of four axes for each sample of the batch; any other as it is."""
    if mask.ndim != 4:
        return mask
    rest = np.broadcast_shapes(mask.shape[1:], (1, 1, 1))
    return np.broadcast_to(mask, (batch, *rest))


@operator("RotaryEmbedding")
def rotary_embedding(
    x: Array,
    cos: Array,
    sin: Array,
    positions: Array | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Any:
    """ONNX RotaryEmbedding: rotate pairs of features by their position.

    Source: Su et al. 2021, section 3.4.
    """
    has_heads = x.ndim == 4
    # y: (batch, length, heads, size)
    if has_heads:
        y = x.transpose(0, 2, 1, 3)
    else:
        y = x.reshape(*x.shape[:2], num_heads, -1)
    width = rotary_embedding_dim or y.shape[-1]
    if positions is not None:
        cos = cos[positions]
        sin = sin[positions]
    cos = np.expand_dims(cos, 2)
    sin = np.expand_dims(sin, 2)
    turn = _turned_pairs if interleaved else _turned_halves
    turned = turn(y[..., :width], cos, sin)
    result = np.concatenate((turned, y[..., width:]), axis=-1)
    if has_heads:
        return result.transpose(0, 2, 1, 3)
    return result.reshape(x.shape)


def _turned_pairs(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate pairs of neighbours."""
    a = x[..., 0::2]
    b = x[..., 1::2]
    turned = (cos * a - sin * b, sin * a + cos * b)
    return np.stack(turned, axis=-1).reshape(x.shape)


def _turned_halves(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate pairs of a feature of the first half and one of the second."""
    half = x.shape[-1] // 2
    a = x[..., :half]
    b = x[..., half:]
    turned = (cos * a - sin * b, sin * a + cos * b)
    return np.concatenate(turned, axis=-1)
