"""The layer that does with a parameter what a call does with it, and why there may be none."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn

from octavo.adapters.pytorch.loose_weights.forms import PLAIN, Form, Uses, matrices
from octavo.adapters.pytorch.loose_weights.place import Batched
from octavo.adapters.pytorch.modules.kinds import CONVS, TRANSPOSED

_MOST = 64
"""A weight with more matrices than so many stays float: each of them would be a layer."""
_CONVS: tuple[Any, ...] = CONVS
_TRANSPOSED: tuple[Any, ...] = TRANSPOSED


def obstacle(form: Form, held: Tensor) -> str:
    """Return why no layer can hold a parameter for a use; empty where one can."""
    if form.kind == "product" and form.batch:
        count = prod(held.shape[axis] for axis in form.batch)
        if count > _MOST:
            return f"it holds {count} matrices, of which each would be a layer"
    if form.kind == "conv_transpose" and form.geometry[-1] < 1:
        return "its geometry is none of a layer"
    return ""


def why_float(use: Uses, held: Tensor) -> str:
    """Return why no layer holds a parameter, from what the example's run showed.

    Empty where one can, or nothing reads it.
    """
    for form in use.forms:
        why = obstacle(form, held)
        if why:
            return why
    if use.forms or not use.reads:
        return ""
    readers = ", ".join(use.reads[:4])
    return (
        f"it is a factor of no product that a layer computes: it is read by {readers}"
    )


def layer_for(form: Form, held: nn.Parameter) -> nn.Module:
    """Return the layer that uses a parameter in that form.

    Its weight is a view of it, or the parameter itself.
    """
    if form.kind == "product":
        return _product_layer(form, held)
    made: nn.Module
    if form.kind == "embedding":
        made = nn.Embedding(held.shape[0], held.shape[1], device="meta")
    elif form.kind == "conv":
        made = _conv(form, held)
    else:
        made = _conv_transpose(form, held)
    made._parameters["weight"] = held
    return made.eval()


def _product_layer(form: Form, held: nn.Parameter) -> nn.Module:
    if form == PLAIN and held.ndim == 2:
        return linear_over(held)
    made = matrices(held.detach(), form)
    if not form.batch:
        return linear_over(nn.Parameter(made, held.requires_grad))
    layers = []
    for matrix in made:
        own = nn.Parameter(matrix, held.requires_grad)
        layers.append(linear_over(own))
    return Batched(layers).eval()


def _conv(form: Form, held: nn.Parameter) -> nn.Module:
    stride, padding, dilation, groups = form.geometry
    made: nn.Module = _CONVS[held.ndim - 3](
        held.shape[1] * groups,
        held.shape[0],
        tuple(held.shape[2:]),
        stride,
        padding,
        dilation=dilation,
        groups=groups,
        bias=False,
        device="meta",
    )
    return made


def _conv_transpose(form: Form, held: nn.Parameter) -> nn.Module:
    stride, padding, more, dilation, groups = form.geometry
    made: nn.Module = _TRANSPOSED[held.ndim - 3](
        held.shape[0],
        held.shape[1] * groups,
        tuple(held.shape[2:]),
        stride,
        padding,
        more,
        groups,
        dilation=dilation,
        bias=False,
        device="meta",
    )
    return made


def linear_over(weight: nn.Parameter, bias: nn.Parameter | None = None) -> nn.Linear:
    """Return a linear layer, in eval mode, that holds these very parameters."""
    # On the meta device no numbers are made only to be dropped.
    made = nn.Linear(
        weight.shape[1], weight.shape[0], bias=bias is not None, device="meta"
    )
    made._parameters["weight"] = weight
    if bias is not None:
        made._parameters["bias"] = bias
    return made.eval()
