"""Layers whose weight is stored in few bits and whose arithmetic is float.

The weight is never made whole: a block of rows is decoded into the cache, used and dropped. Where torch has a kernel for
the format on this machine, that runs instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.kernels import accelerators
from octavo.adapters.pytorch.kernels.autocast import result_dtype
from octavo.adapters.pytorch.kernels.int4 import int4_linear
from octavo.adapters.pytorch.kernels.operators import is_portable
from octavo.adapters.pytorch.kernels.posts import post
from octavo.adapters.pytorch.kernels.windows import Geometry
from octavo.core.numerics.tensor import QuantizedTensor

from .low_bit_layer import Coded
from .packed_weights import StoredWeight

Tensor = torch.Tensor
_INT4_GROUPS = (32, 64, 128, 256)


class WeightOnlyLinear(Coded):
    """y = then(x W^T + b) with W in few bits.

    Args:
        weight: Its codes.
        bias: Or None.
        dtype: Of the result.
        transposed: The weight is stored as (inputs, outputs).
        factors: float32 (inputs,): the input is multiplied by it first.
        then: Activation function applied to the result.
    """

    bias: Tensor | None
    factors: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        *,
        transposed: bool = False,
        factors: Tensor | None = None,
        then: str = "",
    ) -> None:
        super().__init__()
        self.weight_codes = StoredWeight(weight, transposed=transposed)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self.register_buffer("factors", factors)
        self.transposed = transposed
        self.dtype = dtype
        self.then = then
        self._on_kernel = self._fits_int4()

    def _fits_int4(self) -> bool:
        """True if the device multiplies by these 4-bit codes as they are."""
        w = self.weight_codes
        fits = (
            w.spec.dtype in ("int4", "uint4")
            and w.group in _INT4_GROUPS
            and w.scale.shape[0] == w.rows
            and w.rows % 32 == 0
        )
        return fits and not accelerators.on(w.codes.device).missing_int4(w.codes.device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._on_kernel = self._fits_int4()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        _follow(self)
        self._on_kernel = self._fits_int4()  # another device has other kernels
        return self

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers; what its input is multiplied by first belongs to it."""
        weight = self.weight_codes.whole()
        weight = weight if self.factors is None else weight * self.factors
        return (weight.t() if self.transposed else weight).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        if self.factors is not None:
            x = x * self.factors.to(x.dtype)
        if x.requires_grad and torch.is_grad_enabled():
            return post(self.then, _Recomputed.apply(x, self))  # type: ignore[no-untyped-call]
        compiling = torch.compiler.is_compiling()
        if self._on_kernel and not (compiling and is_portable()):
            return post(
                self.then, self._int4(x, torch.ops.octavo.int4_linear if compiling else int4_linear)
            )
        return post(self.then, self._in_blocks(x))

    def _int4(self, x: Tensor, multiply: Callable[..., Tensor]) -> Tensor:
        w = self.weight_codes
        y = multiply(x.detach(), w.codes, w.scale, w.offset, w.lowest).to(
            result_dtype(self.dtype, x.device)
        )
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _in_blocks(self, x: Tensor) -> Tensor:
        w = self.weight_codes
        flat = x.reshape(-1, w.features).to(self.dtype)
        parts = []
        for first in w.blocks():
            rows = slice(first, min(first + w.step, w.rows))
            block = w.decode(w.codes[rows], rows).to(self.dtype)
            parts.append(
                nn.functional.linear(flat, block, None if self.bias is None else self.bias[rows])
            )
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return y.view(*x.shape[:-1], w.rows)


def _follow(layer: Any) -> None:
    """Give a layer's bias the type of its result."""
    if layer.bias is not None:
        layer.bias = layer.bias.to(layer.dtype)


class _Recomputed(torch.autograd.Function):
    """x W^T whose backward decodes the weight again, so that the graph holds no float weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: WeightOnlyLinear) -> Tensor:
        ctx.layer = layer
        ctx.kind = x.dtype
        return layer._in_blocks(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        w: StoredWeight = ctx.layer.weight_codes
        flat = grad.reshape(-1, w.rows)
        total = flat.new_zeros(flat.shape[0], w.features)
        for first in w.blocks():
            rows = slice(first, min(first + w.step, w.rows))
            total.addmm_(flat[:, rows], w.decode(w.codes[rows], rows).to(flat.dtype))
        return total.view(*grad.shape[:-1], w.features).to(ctx.kind), None


class WeightOnlyEmbedding(Coded):
    """A table whose rows are decoded as they are looked up.

    Args:
        weight: Its codes.
        dtype: Of the result.
        bag: The original module, where rows are summed or averaged in bags.
    """

    def __init__(
        self, weight: QuantizedTensor, dtype: torch.dtype, bag: nn.EmbeddingBag | None = None
    ) -> None:
        super().__init__()
        self.weight_codes = StoredWeight(weight)
        self.dtype = dtype
        self.bag = None if bag is None else (str(bag.mode), bool(bag.include_last_offset))
        self.padding = None if bag is None else bag.padding_idx

    def decoded_weight(self) -> Tensor:
        """Return the table as float numbers."""
        return self.weight_codes.whole().to(self.dtype)

    def _rows(self, ids: Tensor) -> Tensor:
        w = self.weight_codes
        flat = ids.reshape(-1)
        return w.decode(nn.functional.embedding(flat, w.codes), flat).to(self.dtype)

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Return the rows of ``ids``, or one sum of rows for each bag."""
        if self.bag is None:
            return self._rows(ids).view(*ids.shape, self.weight_codes.features)
        used, places = torch.unique(ids, return_inverse=True)
        padding = None
        if self.padding is not None and bool((used == self.padding).any()):
            padding = int((used == self.padding).nonzero()[0, 0])
        mode, last = self.bag
        return nn.functional.embedding_bag(
            places,
            self._rows(used),
            offsets,
            mode=mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=last,
            padding_idx=padding,
        )


class WeightOnlyConv(Coded):
    """A convolution with its weight in few bits; output channels are decoded a block at a time.

    Args:
        weight: Its codes.
        bias: Or None.
        dtype: Of the result.
        geometry: Stride, symmetric padding, dilation, groups.
        pads: Extra zeros (as ``torch.nn.functional.pad`` takes them) where the padding is not symmetric.
        then: ``relu``, or empty.
    """

    bias: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        *,
        geometry: Geometry,
        pads: tuple[int, ...] = (),
        then: str = "",
    ) -> None:
        super().__init__()
        self.weight_codes = StoredWeight(weight)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self.shape = tuple(weight.shape[1:])
        self.dtype, self.geometry, self.pads, self.then = dtype, geometry, pads, then
        self._convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[
            len(self.shape) - 2
        ]

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers."""
        w = self.weight_codes
        return w.whole().view(-1, *self.shape).to(self.dtype)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        _follow(self)
        return self

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the layer's output, ``other`` added before the activation function."""
        w = self.weight_codes
        x = nn.functional.pad(x, self.pads) if self.pads else x
        # Groups read other channels each: their weights, which are small, are decoded together.
        step = w.step if self.geometry[3] == 1 else w.rows
        parts = []
        for first in range(0, w.rows, step):
            rows = slice(first, min(first + step, w.rows))
            block = w.decode(w.codes[rows], rows).view(-1, *self.shape).to(self.dtype)
            parts.append(
                self._convolve(
                    x, block, None if self.bias is None else self.bias[rows], *self.geometry
                )
            )
        channels = -len(self.shape)  # also of a single sample without an axis for the batch
        y = parts[0] if len(parts) == 1 else torch.cat(parts, channels)
        return post(self.then, y if other is None else y + other)


class Cast(Coded):
    """A layer computed in bfloat16 or float16; its neighbours keep their own type.

    Args:
        layer: The layer with weights of that type.
        dtype: Of the result.
        then: Activation function applied to the result.
        adds: The second argument is added to the result; else it is the layer's own (offsets of bags, an output size).
    """

    def __init__(
        self, layer: nn.Module, dtype: torch.dtype, then: str = "", *, adds: bool = False
    ) -> None:
        super().__init__()
        self.adds = adds
        self.layer = layer
        self.dtype = dtype
        self.then = then

    def decoded_weight(self) -> Tensor:
        """Return the weight in the type of the result."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach().to(self.dtype)

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """Return the layer's output."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        mine = () if self.adds else others
        y = self.layer(x.to(weight.dtype) if x.is_floating_point() else x, *mine, **named)
        looks_up = isinstance(
            self.layer, nn.Embedding | nn.EmbeddingBag
        )  # autocast leaves their results alone
        y = y.to(self.dtype if looks_up else result_dtype(self.dtype, y.device))
        if self.adds:
            y = y + others[0]
        return post(self.then, y)
