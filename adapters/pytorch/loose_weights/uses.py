"""How a call with a weight in its arguments is made of a layer's own call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .forms import EMBEDDING, Form
from .products import Use, einsum, linear, matmul, tensordot
from .refs import is_whole

Tensor = torch.Tensor
_CONVS = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_CONV_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_NAMES = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip
_MATMULS = ("matmul", "mm", "bmm", "mv")


def use_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Use | None:
    """Return how a call is made of a layer's.

    None where it is no product by a weight that a layer computes.

    Args:
        name: Of the function, without underscores.
        args: Its arguments, one of them a :class:`Ref`.
        kwargs: Likewise.
    """
    if name == "linear":
        return linear(*args, **kwargs)
    if name == "tensordot":
        return tensordot(*args, **kwargs)
    if name == "einsum":
        return einsum(args) if isinstance(args[0], str) and not kwargs else None
    if name in (*_MATMULS, "rmatmul"):
        return _matmul_of(name, args, kwargs)
    if name in _CONVS:
        return _conv(_by_name(_CONV_NAMES, args, kwargs), int(name[4]))
    if name in _TRANSPOSED:
        return _conv_transpose(_by_name(_TRANSPOSED_NAMES, args, kwargs), int(name[-2]))
    return _lookup_of(name, args, kwargs)


def _matmul_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Use | None:
    if len(args) != 2:
        return None
    if name == "rmatmul":
        return matmul(args[1], args[0])
    return None if kwargs else matmul(args[0], args[1])


def _lookup_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Use | None:
    if name == "embedding":
        return _embedding(*args, **kwargs)
    if name == "getitem":
        return _rows(args[0], args[1])
    if name == "index_select" and args[1:2] == (0,) and len(args) == 3:
        return _rows(args[0], args[2])
    return None


def _by_name(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _conv(given: dict[str, Any], count: int) -> Use | None:
    settings = {"stride": 1, "padding": 0, "dilation": 1, **given}
    return _convolved("conv", ("stride", "padding", "dilation"), settings, count)


def _conv_transpose(given: dict[str, Any], count: int) -> Use | None:
    settings = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, **given}
    names = ("stride", "padding", "output_padding", "dilation")
    return _convolved("conv_transpose", names, settings, count)


def _convolved(kind: str, names: Sequence[str], settings: dict[str, Any], count: int) -> Use | None:
    """Return a convolution over ``count`` axes as a layer's call, its geometry read by these names.

    The layers of convolutions hold no views.
    """
    if not is_whole(settings.get("weight")):
        return None
    by_axis = [_for_each_axis(settings[name], count) for name in names]
    groups = int(settings.get("groups", 1))
    form = Form(kind, geometry=(*by_axis, groups))
    return Use(form, settings["input"], None, _shift(settings.get("bias"), count))


def _for_each_axis(value: Any, count: int) -> Any:
    """Return a setting for each axis; a padding may be a word."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return value if isinstance(value, str) else (value,) * count


def _shift(bias: Any, count: int) -> Callable[[Any], Any] | None:
    if bias is None:
        return None
    return lambda y: y + bias.reshape(-1, *[1] * count)


def _embedding(
    ids: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
) -> Use | None:
    # A largest norm writes into the table.
    return _rows(weight, ids) if max_norm is None else None


def _rows(weight: Any, ids: Any) -> Use | None:
    """Return the look-up of a table's rows as a layer's call.

    The layers of tables hold no views.
    """
    if not is_whole(weight) or len(weight.shape) != 2 or isinstance(ids, bool):
        return None
    if isinstance(ids, slice):
        every = torch.arange(weight.shape[0], device=torch.device("cpu"))
        return Use(EMBEDDING, every[ids])
    if isinstance(ids, Tensor):
        is_mask = ids.is_floating_point() or ids.dtype == torch.bool
        return None if is_mask else Use(EMBEDDING, ids)
    is_traced = isinstance(ids, torch.fx.Proxy | torch.fx.Node)
    return Use(EMBEDDING, ids) if is_traced else None
