"""Layers that read one value alike (query, key, value): it is quantized once, and few rows are
multiplied once."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from octavo.adapters.pytorch.kernels import fbgemm
from octavo.adapters.pytorch.kernels.layouts import version_of
from octavo.adapters.pytorch.kernels.memo import Memo
from octavo.adapters.pytorch.qlayers.int8 import Int8Linear

Tensor = torch.Tensor


def share(readers: Iterable[tuple[object, nn.Module]]) -> None:
    """Let layers work together.

    Args:
        readers: A value and a layer that reads it; what is no :class:`Int8Linear` is left alone.
    """
    together: dict[object, list[Int8Linear]] = {}
    for value, layer in readers:
        if isinstance(layer, Int8Linear):
            together.setdefault((value, layer.reading()), []).append(layer)
    for layers in together.values():
        if len(layers) > 1:
            memo = Memo(len(layers))
            for layer in layers:
                layer.memo = memo
            stack(layers)


def stack(layers: Sequence[Int8Linear]) -> Stack:
    """Return the stack of layers that read one value alike, each told its place in it."""
    made = Stack(layers)
    for place, layer in enumerate(layers):
        layer.stacked = (made, place)
    return made


_WASTE = 4
"""More results in a row that were not all taken say that the layers are called with other values
after all."""


class _Entry(NamedTuple):
    """The product of one tensor, of which each layer takes its part."""

    source: weakref.ref[Tensor]
    version: int
    results: dict[int, Tensor]

    def holds(self, place: int, x: Tensor) -> bool:
        return (
            self.source() is x and self.version == x._version and place in self.results
        )


class _Packed(NamedTuple):
    """The joint weight as the kernel takes it, and the tensors that it was made of."""

    tensors: list[Tensor | None]
    versions: list[int]
    weight: Any

    def is_of(self, tensors: list[Tensor | None], versions: list[int]) -> bool:
        return self.versions == versions and all(
            map(operator.is_, self.tensors, tensors)
        )


class Stack:
    """The weights of several layers over one another; each layer takes its own part of the result,
    once.

    A kernel's fixed cost weighs most where rows are few. The layers change and quantize their input
    alike. What a layer is given is memory of its own, which its reader may overwrite. Where results
    stay untaken time and again, because the layers are called with other values after all, every
    layer is left to itself.

    Args:
        layers: The layers, in the order of their places.
    """

    def __init__(self, layers: Sequence[Int8Linear]) -> None:
        self._layers = tuple(layers)
        self._wasted = 0
        self._packed: _Packed | None = None
        self._entry: _Entry | None = None

    def take(self, place: int, x: Tensor) -> Tensor | None:
        """Return the product of ``x`` and the weight at one place, float32, before any activation
        function; or None."""
        if self._wasted > _WASTE:
            return None
        entry = self._entry
        if entry is None or not entry.holds(place, x):
            self._wasted = 0 if entry is None else self._wasted + 1
            entry = _Entry(
                weakref.ref(x), x._version, dict(enumerate(self._product(x)))
            )
            self._entry = entry
        own = entry.results.pop(place)
        if not entry.results:
            self._entry = None
        return own

    def _product(self, x: Tensor) -> Sequence[Tensor]:
        tensors = [
            t for layer in self._layers for t in (layer.codes, layer.scale, layer.bias)
        ]
        versions = [version_of(t) for t in tensors]
        packed = self._packed
        if packed is None or not packed.is_of(tensors, versions):
            packed = self._packed = _Packed(tensors, versions, self._pack())
        sizes = [layer.outputs for layer in self._layers]
        joined = self._layers[0].rows(x, packed.weight)
        parts: Sequence[Tensor] = torch.ops.aten.split_with_sizes_copy(
            joined, sizes, -1
        )
        return parts

    def _pack(self) -> Any:
        codes = torch.cat([layer.matrix() for layer in self._layers])
        scale = torch.cat([layer.scale.expand(layer.outputs) for layer in self._layers])
        zeros = scale.new_zeros
        biases = [
            zeros(la.outputs) if la.bias is None else la.bias for la in self._layers
        ]
        return fbgemm.pack_rows(codes, scale, torch.cat(biases))

    def __getstate__(self) -> dict[str, Any]:
        # The packed layout is the machine's own.
        return {**self.__dict__, "_packed": None, "_entry": None}
