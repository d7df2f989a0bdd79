"""How a call with a weight in its arguments is made of a layer's own call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .forms import EMBEDDING, Form
from .products import Use
from .refs import is_whole
from .written_products import einsum, linear, matmul, tensordot

Tensor = torch.Tensor
_Args = Sequence[Any]
_Kwargs = Mapping[str, Any]
_CONVS = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_CONV_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_NAMES = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip
_MATMULS = ("matmul", "mm", "bmm", "mv")


def use_of(name: str, args: _Args, kwargs: _Kwargs) -> Use | None:
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
        # Equations may be given as lists of numbers too.
        is_written = isinstance(args[0], str) and not kwargs
        return einsum(args) if is_written else None
    if name in (*_MATMULS, "rmatmul"):
        return _matmul_of(name, args, kwargs)
    if name in _CONVS:
        given = _by_name(_CONV_NAMES, args, kwargs)
        return _conv(given, int(name[-2]))
    if name in _TRANSPOSED:
        given = _by_name(_TRANSPOSED_NAMES, args, kwargs)
        return _conv_transpose(given, int(name[-2]))
    return _lookup_of(name, args, kwargs)


def _matmul_of(name: str, args: _Args, kwargs: _Kwargs) -> Use | None:
    if len(args) != 2:
        return None
    if name == "rmatmul":
        return matmul(args[1], args[0])
    return None if kwargs else matmul(args[0], args[1])


def _lookup_of(name: str, args: _Args, kwargs: _Kwargs) -> Use | None:
    if name == "embedding":
        return _embedding(*args, **kwargs)
    if name == "getitem":
        return _rows(args[0], args[1])
    if name == "index_select" and len(args) == 3:
        table, axis, ids = args
        # Rows lie along the first axis; a traced one may be anything.
        if type(axis) is int and axis == 0:
            return _rows(table, ids)
    return None


def _by_name(names: Sequence[str], args: _Args, kwargs: _Kwargs) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _conv(given: dict[str, Any], count: int) -> Use | None:
    settings = {"stride": 1, "padding": 0, "dilation": 1, **given}
    return _convolved("conv", ("stride", "padding", "dilation"), settings, count)


def _conv_transpose(given: dict[str, Any], count: int) -> Use | None:
    settings = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, **given}
    names = ("stride", "padding", "output_padding", "dilation")
    return _convolved("conv_transpose", names, settings, count)


def _convolved(
    kind: str, names: Sequence[str], settings: dict[str, Any], count: int
) -> Use | None:
    """Return a convolution over ``count`` axes as a layer's call, its geometry read by these names.

    The layers of convolutions hold no views.
    """
    if not is_whole(settings.get("weight")):
        return None
    by_axis = [_for_each_axis(settings[name], count) for name in names]
    groups = int(settings.get("groups", 1))
    return Use(
        form=Form(kind, geometry=(*by_axis, groups)),
        x=settings["input"],
        after=_shift(settings.get("bias"), count),
    )


def _for_each_axis(value: Any, count: int) -> Any:
    """Return a setting for each axis; a padding may be a word."""
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, str):
        return value
    return (value,) * count


def _shift(bias: Any, count: int) -> Callable[[Any], Any] | None:
    """Return what adds a bias to a result with so many axes behind the channels."""
    if bias is None:
        return None
    shape = (-1, *[1] * count)
    return lambda y: y + bias.reshape(*shape)


def _embedding(
    ids: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    *_: Any,
    **__: Any,
) -> Use | None:
    # A largest norm writes into the table.
    return _rows(weight, ids) if max_norm is None else None


def _rows(weight: Any, ids: Any) -> Use | None:
    """Return the look-up of a table's rows as a layer's call.

    The layers of tables hold no views.
    """
    if not is_whole(weight) or len(weight.shape) != 2:
        return None
    if isinstance(ids, slice):
        rows = weight.shape[0]
        every = torch.arange(rows, device=torch.device("cpu"))
        return Use(EMBEDDING, every[ids])
    return Use(EMBEDDING, ids) if _are_ids(ids) else None


def _are_ids(value: Any) -> bool:
    """Return whether a value is a tensor of row numbers, or will be one."""
    if isinstance(value, Tensor):
        # A mask chooses rows in another way.
        is_mask = value.dtype == torch.bool
        return not is_mask and not value.is_floating_point()
    return isinstance(value, torch.fx.Proxy | torch.fx.Node)
