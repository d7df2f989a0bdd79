"""What a call does with a weight: which of its axes are summed over, and how the call is made of a layer's own call.

A matrix product, whichever way it is written (``@``, ``bmm``, ``einsum``, ``F.linear``, ``tensordot``), is three sets of the weight's
axes: those that are summed over, those that are the result's own, and those along which every index has a product of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Self

import torch

Tensor = torch.Tensor
Labels = tuple[Any, ...]
"""One hashable name for each axis; axes of equal names are one."""


@dataclass(frozen=True)
class Form:
    """How a call uses a parameter; axes are the parameter's own.

    Attributes:
        kind: ``product``, ``embedding``, ``conv`` or ``conv_transpose``.
        batch: Axes of a product along which every index has a matrix of its own.
        free: Axes that are the result's.
        summed: Axes that are summed over.
        geometry: Of a convolution: stride, padding, dilation, groups and, transposed, output padding after the padding.
    """

    kind: str
    batch: tuple[int, ...] = ()
    free: tuple[int, ...] = ()
    summed: tuple[int, ...] = ()
    geometry: tuple[Any, ...] = ()

    def to_json(self) -> list[Any]:
        """Return a JSON-ready list."""
        axes = [list(a) for a in (self.batch, self.free, self.summed)]
        return [self.kind, *axes, [list(g) if isinstance(g, tuple) else g for g in self.geometry]]

    @classmethod
    def from_json(cls, raw: Sequence[Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        kind, batch, free, summed, geometry = raw
        form = tuple(tuple(g) if isinstance(g, list) else g for g in geometry)
        return cls(str(kind), tuple(batch), tuple(free), tuple(summed), form)


EMBEDDING = Form("embedding")
PLAIN = Form("product", (), (0,), (1,))
"""A matrix as ``nn.Linear`` holds it."""
BILINEAR = Form("product", (), (0, 2), (1,))
"""The weight of a bilinear form, (outputs, inputs 1, inputs 2), as it is multiplied by the first input."""


@dataclass(frozen=True)
class Ref:
    """A view of a parameter that stands in a call's arguments in place of it.

    Attributes:
        shape: Of the view.
        axes: The parameter's axis of each of the view's.
        picked: Axis and index of a parameter's axis of which the view holds one index.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    picked: tuple[int, int] | None = None


@dataclass(frozen=True)
class Use:
    """A call as that of a layer.

    Attributes:
        form: What the layer must be.
        x: What the layer is given, before :attr:`before`.
        before: Arranges it.
        after: Arranges the layer's result.
        index: For a layer of many matrices: the one that is called.
    """

    form: Form
    x: Any
    before: Callable[[Any], Any] | None = None
    after: Callable[[Any], Any] | None = None
    index: int | None = None

    def run(self, layer: Callable[[Any], Any]) -> Any:
        """Return the call's result."""
        y = layer(self.x if self.before is None else self.before(self.x))
        return y if self.after is None else self.after(y)


_CONVS = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_CONV_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_NAMES = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip
_MATMULS = ("matmul", "mm", "bmm", "mv")


def use_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Use | None:
    """Return how a call is made of a layer's; None where it is no product by a weight that a layer computes.

    Args:
        name: Of the function, without underscores.
        args: Its arguments, one of them a :class:`Ref`.
        kwargs: Likewise.
    """
    if name == "linear":
        return _linear(*args, **kwargs)
    if name in _MATMULS and len(args) == 2 and not kwargs:
        return _matmul(args[0], args[1])
    if name == "rmatmul" and len(args) == 2:
        return _matmul(args[1], args[0])
    if name == "einsum" and isinstance(args[0], str) and not kwargs:
        return _einsum(args)
    if name == "tensordot":
        return _tensordot(*args, **kwargs)
    if name in _CONVS:
        return _conv(dict(zip(_CONV_NAMES, args, strict=False)) | dict(kwargs), int(name[4]))
    if name in _TRANSPOSED:
        given = dict(zip(_TRANSPOSED_NAMES, args, strict=False)) | dict(kwargs)
        return _conv_transpose(given, int(name[-2]))
    if name == "embedding":
        return _embedding(*args, **kwargs)
    if name == "getitem":
        return _rows(args[0], args[1])
    if name == "index_select" and args[1:2] == (0,) and len(args) == 3:
        return _rows(args[0], args[2])
    return None


def rank(value: Any) -> int | None:
    """Return how many axes a value has; None where that is not known, as while a graph is traced."""
    return value.dim() if isinstance(value, Tensor) else None


def product(x: Any, of_x: Labels, weight: Ref, of_weight: Labels, result: Labels) -> Use | None:
    """Return a sum of products as a layer's call.

    Args:
        x: A value.
        of_x: The names of its axes.
        weight: The weight.
        of_weight: The names of its axes.
        result: The names of the result's axes, in order.
    """
    axis = dict(zip(of_weight, weight.axes, strict=True))
    size = dict(zip(of_weight, weight.shape, strict=True))
    if (
        len(axis) != len(of_weight)
        or len(set(of_x)) != len(of_x)
        or len(set(result)) != len(result)
    ):
        return None
    ordered = sorted(of_weight, key=axis.__getitem__)
    batch = tuple(n for n in ordered if n in of_x and n in result)
    summed = tuple(n for n in ordered if n in of_x and n not in result)
    free = tuple(n for n in ordered if n not in of_x and n in result)
    rest = tuple(n for n in of_x if n not in axis)
    known = len(batch) + len(summed) + len(free) == len(ordered) and set(rest) <= set(result)
    if not known or not summed or not free or len(result) != len(batch) + len(rest) + len(free):
        return None
    own = tuple(tuple(axis[n] for n in names) for names in (batch, free, summed))
    form = Form("product", *own)
    if weight.picked is not None:
        if batch:
            return None
        form = Form("product", (weight.picked[0],), *own[1:])
    turned = tuple(of_x.index(n) for n in (*batch, *rest, *summed))
    made = (*batch, *rest, *free)
    back = tuple(made.index(n) for n in result)
    sizes = tuple(size[n] for n in free)
    many = tuple(size[n] for n in batch)

    def before(value: Any) -> Any:
        value = value if turned == tuple(range(len(turned))) else value.permute(turned)
        value = value if len(summed) == 1 else value.flatten(-len(summed))
        return value if len(many) < 2 else value.flatten(0, len(many) - 1)

    def after(value: Any) -> Any:
        value = value if len(many) < 2 else value.unflatten(0, many)
        value = value if len(sizes) == 1 else value.unflatten(-1, sizes)
        return value if back == tuple(range(len(back))) else value.permute(back)

    index = None if weight.picked is None else weight.picked[1]
    return Use(form, x, before, after, index)


def _plain(x: Any, weight: Ref) -> Use:
    """Return the product of the last axis of ``x``, whose rank need not be known, and a weight (inputs, outputs)."""
    axes = ((weight.axes[1],), (weight.axes[0],))
    if weight.picked is None:
        return Use(Form("product", (), *axes), x)
    return Use(Form("product", (weight.picked[0],), *axes), x, index=weight.picked[1])


def turned(weight: Ref, first: int = -2, second: int = -1) -> Ref:
    """Return a view with two axes exchanged."""
    shape, axes = list(weight.shape), list(weight.axes)
    shape[first], shape[second] = shape[second], shape[first]
    axes[first], axes[second] = axes[second], axes[first]
    return Ref(tuple(shape), tuple(axes), weight.picked)


def _linear(x: Any, weight: Any, bias: Any = None) -> Use | None:
    if not isinstance(weight, Ref) or isinstance(x, Ref) or len(weight.shape) != 2:
        return None
    use = _plain(x, turned(weight))
    return use if bias is None else Use(use.form, x, None, lambda y: y + bias, use.index)


def _matmul(left: Any, right: Any) -> Use | None:
    if isinstance(right, Ref) and isinstance(left, Ref):
        return None
    if isinstance(right, Ref):
        if len(right.shape) == 2:
            return _plain(left, right)
        return _batched(left, right, weight_first=False)
    return _batched(right, left, weight_first=True) if isinstance(left, Ref) else None


def _batched(x: Any, weight: Ref, *, weight_first: bool) -> Use | None:
    """Return a product whose leading axes are aligned from the right, as ``torch.matmul`` does."""
    count = rank(x)
    if count is None or len(weight.shape) < 2:
        return None
    lead = [("w", i) for i in range(len(weight.shape) - 2)]
    of_weight: Labels = (*lead, "n", "k") if weight_first else (*lead, "k", "n")
    if count == 1:
        return product(x, ("k",), weight, of_weight, (*lead, "n"))
    outer: list[Any] = [("x", i) for i in range(count - 2)]
    for i in range(1, min(len(lead), len(outer)) + 1):
        if x.shape[-2 - i] != weight.shape[-2 - i]:
            return None
        outer[-i] = lead[-i]
    longest = [*lead[: max(0, len(lead) - len(outer))], *outer]
    if weight_first:
        return product(x, (*outer, "k", "r"), weight, of_weight, (*longest, "n", "r"))
    return product(x, (*outer, "r", "k"), weight, of_weight, (*longest, "r", "n"))


def _einsum(args: Sequence[Any]) -> Use | None:
    operands = (
        list(args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else list(args[1:])
    )
    if len(operands) != 2:
        return None
    terms, arrow, out = args[0].replace(" ", "").partition("->")
    first, comma, second = terms.partition(",")
    if not arrow or not comma or sum(isinstance(o, Ref) for o in operands) != 1:
        return None
    place = 1 if isinstance(operands[1], Ref) else 0
    of_weight, of_x = ((first, second), (second, first))[place]
    x, weight = operands[1 - place], operands[place]
    if "..." in of_weight or ("..." in of_x) != ("..." in out):
        return None
    count = rank(x)
    if "..." in of_x and count is None:
        return None
    more = () if count is None else tuple(("...", i) for i in range(count - len(of_x) + 3))
    whole = [_named(term, more) for term in (of_x, out)]
    return product(x, whole[0], weight, tuple(of_weight), whole[1])


def _named(term: str, more: Labels) -> Labels:
    """Return the labels of a term of an equation; an ellipsis stands for ``more``."""
    before, dots, after = term.partition("...")
    return (*before, *more, *after) if dots else tuple(term)


def _tensordot(a: Any, b: Any, dims: Any = 2, out: Any = None) -> Use | None:
    place = 1 if isinstance(b, Ref) else 0
    x, weight = (a, b) if place else (b, a)
    count = rank(x)
    if count is None or not isinstance(weight, Ref) or out is not None:
        return None
    ranks = (count, len(weight.shape)) if place else (len(weight.shape), count)
    if isinstance(dims, int):
        pairs = [list(range(ranks[0] - dims, ranks[0])), list(range(dims))]
    elif isinstance(dims, list | tuple) and len(dims) == 2:
        pairs = [list(d) if isinstance(d, list | tuple) else [d] for d in dims]
    else:
        return None
    names: list[list[Any]] = [[(side, i) for i in range(n)] for side, n in enumerate(ranks)]
    for i, j in zip(*pairs, strict=True):
        names[1][j] = names[0][i]
    met = set(names[0]) & set(names[1])
    result = tuple(n for n in (*names[0], *names[1]) if n not in met)
    return product(x, tuple(names[1 - place]), weight, tuple(names[place]), result)


def _tuple(value: Any, count: int) -> Any:
    return (
        tuple(value)
        if isinstance(value, list | tuple)
        else value
        if isinstance(value, str)
        else (value,) * count
    )


def _is_whole(weight: Any) -> bool:
    """True for a parameter as it is: the layers of convolutions and tables hold no views."""
    return (
        isinstance(weight, Ref)
        and weight.axes == tuple(range(len(weight.axes)))
        and weight.picked is None
    )


def _conv(given: dict[str, Any], count: int) -> Use | None:
    weight, bias = given.get("weight"), given.get("bias")
    if not _is_whole(weight):
        return None
    settings = {"stride": 1, "padding": 0, "dilation": 1, **given}
    form = tuple(_tuple(settings[k], count) for k in ("stride", "padding", "dilation"))
    geometry = (*form, int(given.get("groups", 1)))
    return Use(Form("conv", geometry=geometry), given["input"], None, _shift(bias, count))


def _conv_transpose(given: dict[str, Any], count: int) -> Use | None:
    weight, bias = given.get("weight"), given.get("bias")
    if not _is_whole(weight):
        return None
    settings = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, **given}
    names = ("stride", "padding", "output_padding", "dilation")
    form = tuple(_tuple(settings[k], count) for k in names)
    geometry = (*form, int(given.get("groups", 1)))
    return Use(Form("conv_transpose", geometry=geometry), given["input"], None, _shift(bias, count))


def _shift(bias: Any, count: int) -> Callable[[Any], Any] | None:
    return None if bias is None else lambda y: y + bias.reshape(-1, *[1] * count)


def _embedding(
    ids: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
) -> Use | None:
    return _rows(weight, ids) if max_norm is None else None


def _rows(weight: Any, ids: Any) -> Use | None:
    if not _is_whole(weight) or len(weight.shape) != 2 or isinstance(ids, bool):
        return None
    if isinstance(ids, slice):
        device = torch.device("cpu")
        rows = torch.arange(weight.shape[0], device=device)[ids]
        return Use(EMBEDDING, rows)
    whole = isinstance(ids, Tensor) and not ids.is_floating_point() and ids.dtype != torch.bool
    return Use(EMBEDDING, ids) if whole or (rank(ids) is None and _is_traced(ids)) else None


def _is_traced(value: Any) -> bool:
    return isinstance(value, torch.fx.Proxy | torch.fx.Node)


@dataclass
class Uses:
    """What a run showed of one parameter.

    Attributes:
        forms: What layers are asked for, in the order in which they were met.
        reads: Other functions that read it.
    """

    forms: list[Form] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)

    def note(self, form: Form | None, name: str) -> None:
        """Take one call down."""
        if form is not None:
            if form not in self.forms:
                self.forms.append(form)
        elif name not in self.reads:
            self.reads.append(name)


def matrices(tensor: Tensor, form: Form) -> Tensor:
    """Return a parameter as (outputs, inputs), with one axis for all of a batch before; a view wherever that is possible."""
    order = (*form.batch, *form.free, *form.summed)
    moved = tensor.permute(order)
    sizes = [[tensor.shape[a] for a in axes] for axes in (form.free, form.summed)]
    lead = [prod(tensor.shape[a] for a in form.batch)] if form.batch else []
    return moved.reshape(*lead, *map(prod, sizes))


def restored(matrix: Tensor, form: Form, shape: Sequence[int]) -> Tensor:
    """Return what :func:`matrices` made as the parameter of that shape that it was made of."""
    order = (*form.batch, *form.free, *form.summed)
    moved = matrix.reshape([shape[a] for a in order])
    return moved.permute([order.index(a) for a in range(len(shape))])
