"""Modules that call no layer for their products, and what stands in for them.

So these products can be quantized.
"""

from __future__ import annotations

from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import copy_hooks, set_submodule

from .attention import Attention, with_linear_projections
from .experts import Experts, is_experts
from .parametrized import fold_parametrized
from .subclasses import as_plain_layers
from .unregistered import adopt_hidden

STAND_INS = (Attention, Experts)
"""Float modules of octavo's own, whose layers are seen as any others."""


def with_plain_weights(root: nn.Module) -> nn.Module:
    """Return a skeleton whose modules are all children of others, with weights that they hold."""
    return fold_parametrized(adopt_hidden(root))


def with_stand_ins(root: nn.Module) -> nn.Module:
    """Return a skeleton with stand-ins for modules that call no layer for their products.

    These are every ``nn.MultiheadAttention`` and every mixture of experts that is known.

    Args:
        root: From :func:`with_plain_weights`.
    """
    root = with_linear_projections(as_plain_layers(root))
    for path, module in list(root.named_modules()):
        if is_experts(module):
            new = Experts(module)
            copy_hooks(module, new)
            if not path:
                return new
            set_submodule(root, path, new)
    return root
