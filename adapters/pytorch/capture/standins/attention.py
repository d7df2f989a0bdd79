"""``nn.MultiheadAttention`` with its projections as linear layers, each of which can be quantized.

The original keeps query, key and value projection in one matrix that it multiplies by itself, so
that there is no layer to replace. The stand-in computes the same function; its layers' weights are
views of that matrix, which is never copied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from octavo.adapters.pytorch.modules.shared_copy import copy_hooks, set_submodule

from .attention_arithmetic import attend
from .layers_for_uses import linear_over

# Graphs hold it as one node; tracing knows a function by its name in the module that calls it.
fx.wrap("attend")

Tensor = torch.Tensor
_Views = dict[tuple[int, int], nn.Parameter]


class Attention(nn.Module):
    """Computes what an ``nn.MultiheadAttention`` computes.

    Args:
        module: The original.
        views: Views of packed matrices made so far, so that tied ones stay tied.
    """

    # torch's encoder layers take a fused path around a projection with these; without them they
    # call this module.
    in_proj_bias: Tensor | None = None
    _qkv_same_embed_dim = False
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(self, module: nn.MultiheadAttention, views: _Views) -> None:
        super().__init__()
        self.embed_dim = module.embed_dim
        self.kdim = module.kdim
        self.vdim = module.vdim
        self.num_heads = module.num_heads
        self.head_dim = module.head_dim
        self.batch_first = module.batch_first
        self.dropout = module.dropout
        self.add_zero_attn = module.add_zero_attn
        self.q_proj = _projection(module, "q_proj", 0, views)
        self.k_proj = _projection(module, "k_proj", 1, views)
        self.v_proj = _projection(module, "v_proj", 2, views)
        last = module.out_proj._parameters
        self.out_proj = _linear(last["weight"], last["bias"])
        self.register_parameter("bias_k", module._parameters.get("bias_k"))
        self.register_parameter("bias_v", module._parameters.get("bias_v"))
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
        q = self.q_proj(query)
        k = self.k_proj(key)
        v = self.v_proj(value)
        masks = (key_padding_mask, attn_mask, is_causal)
        more = (self.bias_k, self.bias_v, self.add_zero_attn)
        dropout = self.dropout if self.training else 0.0
        form = (self.num_heads, self.batch_first, dropout)
        projected = (q, k, v)
        pair = attend(projected, masks, more, form, need_weights, average_attn_weights)
        y = self.out_proj(pair[0])
        return y, pair[1]


def _projection(
    module: nn.MultiheadAttention, name: str, place: int, views: _Views
) -> nn.Linear:
    """Return one of the three projections, which is the so-manieth part of a packed matrix."""
    held = module._parameters
    size = module.embed_dim
    packed = held["in_proj_weight"]
    if packed is None:
        # Keys or values of another width have a matrix of their own.
        weight = held[f"{name}_weight"]
    else:
        weight = _part(packed, place, size, views)
    bias = held["in_proj_bias"]
    if bias is not None:
        bias = _part(bias, place, size, views)
    return _linear(weight, bias)


def _linear(weight: nn.Parameter | None, bias: nn.Parameter | None) -> nn.Linear:
    assert weight is not None
    return linear_over(weight, bias)


def _part(packed: nn.Parameter, place: int, size: int, views: _Views) -> nn.Parameter:
    start = place * size
    key = (id(packed), start)
    if key not in views:
        end = start + size
        rows = packed.detach()[start:end]
        views[key] = nn.Parameter(rows, requires_grad=packed.requires_grad)
    return views[key]


class ZeroPadding:
    """Forward hook on an encoder's last layer: padded positions become zero.

    So they do on torch's path through nested tensors.
    """

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor
    ) -> Tensor | None:
        """Return ``y`` with zeros where the float encoder leaves them.

        None where it would not take that path.
        """
        padding: Tensor | None = kwargs.get("src_key_padding_mask")
        is_masked = kwargs.get("src_mask") is not None
        if padding is None or is_masked or y.dim() != 3:
            return None
        if torch.compiler.is_compiling() or _needs_gradient(layer):
            return None
        kept = padding.logical_not()
        if not torch._nested_tensor_from_mask_left_aligned(y, kept):
            return None
        return y * kept[..., None]


def _needs_gradient(layer: nn.Module) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(p.requires_grad for p in layer.parameters())


def with_linear_projections(root: nn.Module) -> nn.Module:
    """Return a skeleton in which every ``nn.MultiheadAttention`` is an :class:`Attention`.

    Subclasses are left as they are.
    """
    views: _Views = {}
    for path, module in list(root.named_modules()):
        if type(module) is nn.MultiheadAttention:
            new = Attention(module, views)
            copy_hooks(module, new)
            if not path:
                return new
            set_submodule(root, path, new)
    for module in root.modules():
        if isinstance(module, nn.TransformerEncoder):
            _leave_nested_path(module)
    return root


def _leave_nested_path(encoder: nn.TransformerEncoder) -> None:
    # It needs layers that take nested tensors, which these do no longer.
    if encoder.use_nested_tensor and _stands_in(encoder.layers[0]):
        encoder.use_nested_tensor = False
        encoder.layers[-1].register_forward_hook(ZeroPadding(), with_kwargs=True)


def bypassed(root: nn.Module) -> dict[str, str]:
    """Return path -> class of modules that read weights of children which they may never call."""
    found = {}
    for path, module in root.named_modules():
        if _may_pass_children_by(module):
            found[path] = type(module).__name__
    return found


def _may_pass_children_by(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    return isinstance(module, nn.TransformerEncoderLayer) and not _stands_in(module)


def _stands_in(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "self_attn", None), Attention)
