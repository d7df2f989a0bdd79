"""Where a weight is held for which a tensor stands, and how it is read there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from .forms import Form, Uses, restored

Tensor = torch.Tensor


class Place:
    """Where a weight is held.

    Args:
        owner: The module whose attribute the stand-in is.
        leaf: The attribute's name.
        shape: Of the weight.
        layers: What the weight is used for -> the owner's child that does it.
        held: The float weight, where no layer holds it yet.
        uses: Takes down what the weight is used for.
    """

    def __init__(
        self,
        owner: nn.Module,
        leaf: str,
        shape: Sequence[int],
        layers: Mapping[Form, str],
        held: Tensor | None = None,
        uses: Uses | None = None,
    ) -> None:
        self.owner = owner
        self.leaf = leaf
        self.shape = tuple(shape)
        self.layers = dict(layers)
        self.held = held
        self.uses = uses

    def layer(self, form: Form) -> nn.Module | None:
        """Return the layer that does what a form asks for; None where there is none."""
        child = self.layers.get(form)
        if child is None:
            return None
        return self.owner._modules[child]

    def decoded(self) -> Tensor:
        """Return the weight as float numbers."""
        if self.held is not None:
            return self.held
        if not self.layers:
            return decoded(self.owner)
        # Any of the layers will do: all hold the same numbers.
        form = next(iter(self.layers))
        child = self.layers[form]
        layer = self.owner._modules[child]
        assert layer is not None
        if isinstance(layer, Batched):
            numbers = torch.stack([decoded(matrix) for matrix in layer])
        else:
            numbers = decoded(layer)
        if form.kind == "product":
            return restored(numbers, form, self.shape)
        return numbers.view(self.shape)

    def dtype(self) -> torch.dtype:
        """Return the type that the numbers have."""
        if self.held is not None:
            return self.held.dtype
        layer = self._first()
        # A quantized layer has no such parameter, and says what it gives.
        weight = layer._parameters.get("weight")
        return weight.dtype if weight is not None else _dtype_of(layer)

    def device(self) -> torch.device:
        """Return where the numbers are."""
        if self.held is not None:
            return self.held.device
        layer = self._first()
        tensors = (*layer.parameters(), *layer.buffers())
        return next(t.device for t in tensors)

    def _first(self) -> nn.Module:
        """Return a layer that holds numbers of the weight; it may be the owner itself."""
        if not self.layers:
            return self.owner
        child = next(iter(self.layers.values()))
        layer = self.owner._modules[child]
        assert layer is not None
        return layer[0] if isinstance(layer, Batched) else layer


def _dtype_of(layer: nn.Module) -> torch.dtype:
    found = getattr(layer, "dtype", None)
    assert isinstance(found, torch.dtype)
    return found


def decoded(layer: nn.Module) -> Tensor:
    """Return a layer's weight as float numbers in the shape of the float layer's."""
    # Float layers have none.
    read: Callable[[], Tensor] | None = getattr(layer, "decoded_weight", None)
    if read is not None:
        return read()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


class Batched(nn.Module):
    """Linear layers with one matrix each.

    They hold a weight of which every index along some axes is a matrix of its own.

    Args:
        layers: The layers, in the order of their indices.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        for i, layer in enumerate(layers):
            self.add_module(str(i), layer)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> nn.Module:
        return self.get_submodule(str(index))

    def __iter__(self) -> Iterator[nn.Module]:
        return self.children()

    def forward(self, x: Tensor) -> Tensor:
        """Return the products (matrices, ..., outputs) of values (matrices, ..., inputs)."""
        results = []
        for i, layer in enumerate(self):
            results.append(layer(x[i]))
        return torch.stack(results)
