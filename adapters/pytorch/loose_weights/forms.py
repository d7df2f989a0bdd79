"""What layers are asked for that are to hold a weight: which of its axes are summed over.

A matrix product, whichever way it is written (``@``, ``bmm``, ``einsum``, ``F.linear``,
``tensordot``), is three sets of the weight's axes: those that are summed over, those that are the
result's own, and those along which every index has a product of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Self

import torch

Tensor = torch.Tensor
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """How a call uses a parameter; axes are the parameter's own.

    Attributes:
        kind: ``product``, ``embedding``, ``conv`` or ``conv_transpose``.
        batch: Axes of a product along which every index has a matrix of its own.
        free: Axes that are the result's.
        summed: Axes that are summed over.
        geometry: Of a convolution: stride, padding, dilation, groups and, transposed, output
            padding after the padding.
    """

    kind: str
    batch: Axes = ()
    free: Axes = ()
    summed: Axes = ()
    geometry: tuple[Any, ...] = ()

    @property
    def order(self) -> Axes:
        """All axes of a product: those of the batch, those of the result, those that are summed."""
        return (*self.batch, *self.free, *self.summed)

    def to_json(self) -> list[Any]:
        """Return a JSON-ready list."""
        geometry = [_as_list(setting) for setting in self.geometry]
        return [
            self.kind,
            list(self.batch),
            list(self.free),
            list(self.summed),
            geometry,
        ]

    @classmethod
    def from_json(cls, raw: Sequence[Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        kind, batch, free, summed, geometry = raw
        return cls(
            kind=str(kind),
            batch=tuple(batch),
            free=tuple(free),
            summed=tuple(summed),
            geometry=tuple(map(_as_tuple, geometry)),
        )


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


EMBEDDING = Form("embedding")
PLAIN = Form("product", (), (0,), (1,))
"""A matrix as ``nn.Linear`` holds it."""
BILINEAR = Form("product", (), (0, 2), (1,))
"""The weight of a bilinear form, (outputs, inputs 1, inputs 2), multiplied by the first input."""


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
        # No form: a layer computes no such call.
        if form is None:
            if name not in self.reads:
                self.reads.append(name)
        elif form not in self.forms:
            self.forms.append(form)


def matrices(tensor: Tensor, form: Form) -> Tensor:
    """Return a parameter as (outputs, inputs), with one axis for all of a batch before.

    A view wherever that is possible.
    """
    groups = [form.free, form.summed]
    if form.batch:
        groups.insert(0, form.batch)
    sizes = [_size(tensor.shape, axes) for axes in groups]
    ordered = tensor.permute(form.order)
    return ordered.reshape(sizes)


def _size(shape: Sequence[int], axes: Axes) -> int:
    return prod(shape[axis] for axis in axes)


def restored(matrix: Tensor, form: Form, shape: Sequence[int]) -> Tensor:
    """Return what :func:`matrices` made as the parameter of that shape that it was made of."""
    order = form.order
    sizes = [shape[axis] for axis in order]
    moved = matrix.reshape(sizes)
    back = [order.index(axis) for axis in range(len(shape))]
    return moved.permute(back)
