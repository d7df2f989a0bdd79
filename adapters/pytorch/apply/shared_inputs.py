"""Layers that read one value alike (query, key, value): it is quantized once, and few rows are multiplied once."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

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


class Stack:
    """The weights of several layers over one another; each layer takes its own part of the result, once.

    A kernel's fixed cost weighs most where rows are few. The layers change and quantize their input alike. What a layer is
    given is memory of its own, which its reader may overwrite. Where results stay untaken time and again, because the layers
    are called with other values after all, every layer is left to itself.

    Args:
        layers: The layers, in the order of their places.
    """

    def __init__(self, layers: Sequence[Int8Linear]) -> None:
        self._layers = tuple(layers)
        self._wasted = 0
        self._packed: tuple[list[Tensor | None], list[int], Any] | None = None
        self._entry: tuple[weakref.ref[Tensor], int, dict[int, Tensor]] | None = None

    def take(self, place: int, x: Tensor) -> Tensor | None:
        """Return the product of ``x`` and the weight at one place, float32, before any activation function; or None."""
        if self._wasted > _WASTE:
            return None
        entry = self._entry
        if entry is not None and entry[0]() is x and entry[1] == x._version and place in entry[2]:
            own = entry[2].pop(place)
        else:
            self._wasted = 0 if entry is None else self._wasted + 1
            results = dict(enumerate(self._product(x)))
            own = results.pop(place)
            entry = self._entry = (weakref.ref(x), x._version, results)
        if not entry[2]:
            self._entry = None
        return own

    def _product(self, x: Tensor) -> Sequence[Tensor]:
        tensors = [t for layer in self._layers for t in (layer.codes, layer.scale, layer.bias)]
        versions = [version_of(t) for t in tensors]
        if (
            self._packed is None
            or self._packed[1] != versions
            or not all(map(operator.is_, self._packed[0], tensors))
        ):
            self._packed = tensors, versions, self._pack()
        sizes = [layer.outputs for layer in self._layers]
        joined = self._layers[0].rows(x, self._packed[2])
        parts: Sequence[torch.Tensor] = torch.ops.aten.split_with_sizes_copy(joined, sizes, -1)
        return parts

    def _pack(self) -> Any:
        codes = torch.cat([layer.matrix() for layer in self._layers])
        scale = torch.cat([layer.scale.expand(layer.outputs) for layer in self._layers])
        biases = [
            scale.new_zeros(layer.outputs) if layer.bias is None else layer.bias
            for layer in self._layers
        ]
        return fbgemm.pack_rows(codes, scale, torch.cat(biases))

    def __getstate__(self) -> dict[str, Any]:
        # The packed layout is the machine's own.
        return {**self.__dict__, "_packed": None, "_entry": None}
