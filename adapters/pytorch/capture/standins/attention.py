"""``nn.MultiheadAttention`` with its projections as linear layers, which can be quantized one by one.

The original keeps query, key and value projection in one matrix that it multiplies by itself, so that there is no layer to
replace. The stand-in computes the same function; its layers' weights are views of that matrix, which is never copied.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from octavo.adapters.pytorch.modules.shared_copy import copy_hooks, set_submodule

Tensor = torch.Tensor
_Views = dict[tuple[int, int], nn.Parameter]


class Attention(nn.Module):
    """Computes what an ``nn.MultiheadAttention`` computes.

    Args:
        module: The original.
        views: Views of packed matrices made so far, so that tied ones stay tied.
    """

    # torch's encoder layers take a fused path around a projection with these; without them they call this module.
    in_proj_bias: Tensor | None = None
    _qkv_same_embed_dim = False
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(self, module: nn.MultiheadAttention, views: _Views) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = module.embed_dim, module.kdim, module.vdim
        self.num_heads, self.head_dim = module.num_heads, module.head_dim
        self.batch_first, self.dropout, self.add_zero_attn = (
            module.batch_first,
            module.dropout,
            module.add_zero_attn,
        )
        e = module.embed_dim
        held = module._parameters

        def projection(name: str, place: int) -> nn.Linear:
            packed, shift = held["in_proj_weight"], held["in_proj_bias"]
            weight = (
                held[f"{name}_weight"] if packed is None else _part(packed, place * e, e, views)
            )
            return _linear(weight, None if shift is None else _part(shift, place * e, e, views))

        self.q_proj, self.k_proj, self.v_proj = (
            projection("q_proj", 0),
            projection("k_proj", 1),
            projection("v_proj", 2),
        )
        self.out_proj = _linear(
            module.out_proj._parameters["weight"], module.out_proj._parameters["bias"]
        )
        self.register_parameter("bias_k", held.get("bias_k"))
        self.register_parameter("bias_v", held.get("bias_v"))
        self.train(module.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs and attention weights, as ``nn.MultiheadAttention`` does."""
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        masks = (key_padding_mask, attn_mask, is_causal)
        more = (self.bias_k, self.bias_v, self.add_zero_attn)
        form = (self.num_heads, self.batch_first, self.dropout if self.training else 0.0)
        pair = attend(projected, masks, more, form, need_weights, average_attn_weights)
        return self.out_proj(pair[0]), pair[1]


@fx.wrap
def attend(
    projected: tuple[Tensor, Tensor, Tensor],
    masks: tuple[Tensor | None, Tensor | None, bool],
    more: tuple[Tensor | None, Tensor | None, bool],
    form: tuple[int, bool, float],
    need_weights: bool,
    average: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return softmax(q k^T / sqrt(d) + mask) v (Vaswani et al. 2017, eq. 1), in the layout of ``q``, and the softmax if asked for.

    Args:
        projected: q, k and v: (steps, features), or with a batch axis first or second.
        masks: Padding of the keys, mask of the scores (boolean: True is left out; or added), and whether that is called causal.
        more: A key and a value that every sequence gets, and whether it gets a pair of zeros.
        form: Heads, whether the batch axis comes first, dropout.
        need_weights: Return the softmax too.
        average: Average it over the heads.
    """
    padding, mask, causal = masks
    heads, batch_first, dropout = form
    if causal and mask is None:
        raise ValueError("is_causal is a hint about attn_mask: give attn_mask too")
    alone = projected[0].dim() == 2
    q, k, v = (
        (p.unsqueeze(0) if alone else p if batch_first else p.transpose(0, 1)) for p in projected
    )
    n, length = q.shape[0], k.shape[1]
    if more[0] is not None and more[1] is not None:
        k, v = (
            torch.cat([k, more[0].expand(n, 1, -1)], 1),
            torch.cat([v, more[1].expand(n, 1, -1)], 1),
        )
    # Widths are written out, since there may be no samples and no steps.
    q, k, v = (
        p.reshape(n, p.shape[1], heads, p.shape[2] // heads).transpose(1, 2) for p in (q, k, v)
    )
    if more[2]:
        k, v = nn.functional.pad(k, (0, 0, 0, 1)), nn.functional.pad(v, (0, 0, 0, 1))
    bias = _added(padding, (n, 1, 1, length), q.dtype)
    scores = _added(
        mask,
        (n, heads, q.shape[2], length) if mask is not None and mask.dim() == 3 else None,
        q.dtype,
    )
    bias = scores if bias is None else bias if scores is None else bias + scores
    if bias is not None:
        bias = nn.functional.pad(bias, (0, k.shape[2] - length))
    weights = None
    if need_weights:
        products = q * math.sqrt(1.0 / q.shape[-1]) @ k.transpose(-2, -1)
        weights = torch.softmax(products if bias is None else products + bias, -1)
        y = nn.functional.dropout(weights, dropout, dropout > 0.0) @ v
        weights = weights.mean(1) if average else weights
        weights = weights.squeeze(0) if alone else weights
    else:
        y = nn.functional.scaled_dot_product_attention(q, k, v, bias, dropout)
    y = y.transpose(1, 2).flatten(2)
    return (y.squeeze(0) if alone else y if batch_first else y.transpose(0, 1)), weights


def _added(mask: Tensor | None, shape: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask as numbers to add to the scores."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    return mask if shape is None else mask.reshape(shape)


class ZeroPadding:
    """Forward hook on an encoder's last layer: padded positions become zero, as on the path through nested tensors."""

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
    ) -> Tensor | None:
        """Return ``y`` with zeros where the float encoder leaves them; None where it would not take that path."""
        mask = kwargs.get("src_key_padding_mask")
        if (
            mask is None
            or kwargs.get("src_mask") is not None
            or y.dim() != 3
            or torch.compiler.is_compiling()
        ):
            return None
        if torch.is_grad_enabled() and any(p.requires_grad for p in layer.parameters()):
            return None
        kept = mask.logical_not()
        return y * kept[..., None] if torch._nested_tensor_from_mask_left_aligned(y, kept) else None


def with_linear_projections(root: nn.Module) -> nn.Module:
    """Return a skeleton in which every ``nn.MultiheadAttention`` is an :class:`Attention`; subclasses are left as they are."""
    views: _Views = {}
    for path, module in list(root.named_modules()):
        if type(module) is nn.MultiheadAttention:
            new = Attention(module, views)
            copy_hooks(module, new)
            if not path:
                return new
            set_submodule(root, path, new)
    for module in root.modules():
        # Its path through nested tensors needs layers that take theirs, which these do no longer.
        if (
            isinstance(module, nn.TransformerEncoder)
            and module.use_nested_tensor
            and _stands_in(module.layers[0])
        ):
            module.use_nested_tensor = False
            module.layers[-1].register_forward_hook(ZeroPadding(), with_kwargs=True)
    return root


def bypassed(root: nn.Module) -> dict[str, str]:
    """Return path -> class of modules that read their children's weights and may never call them."""
    return {
        path: type(module).__name__
        for path, module in root.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        or (isinstance(module, nn.TransformerEncoderLayer) and not _stands_in(module))
    }


def _stands_in(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "self_attn", None), Attention)


def _part(packed: nn.Parameter, start: int, count: int, views: _Views) -> nn.Parameter:
    key = (id(packed), start)
    if key not in views:
        views[key] = nn.Parameter(
            packed.detach()[start : start + count], requires_grad=packed.requires_grad
        )
    return views[key]


def _linear(weight: nn.Parameter | None, bias: nn.Parameter | None) -> nn.Linear:
    assert weight is not None
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = weight
    if bias is not None:
        made.bias = bias
    return made
