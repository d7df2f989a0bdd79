"""Layers whose weight is stored in few bits and whose arithmetic is float.

The weight is never made whole: a block of rows is decoded into the cache, used and dropped. Where
torch has a kernel for the format on this machine, that runs instead.
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
_CONVOLUTIONS: Any = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
"""By the number of axes that they move along, less one."""
_INT4_GROUPS = (32, 64, 128, 256)
"""Features that share a scale, as torch's 4-bit kernels know them."""


class WeightOnlyLinear(Coded):
    """y = then(x W^T + b) with W in few bits.

    A low-rank repair B A of the weight is multiplied in float: y = then(x W^T + (x A^T) B^T + b).

    Args:
        weight: Its codes, and perhaps a repair.
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
        if bias is not None:
            bias = bias.detach().to(dtype)
        self.register_buffer("bias", bias)
        self.register_buffer("factors", factors)
        self.transposed = transposed
        self.dtype = dtype
        self.then = then
        self._on_kernel = self._fits_int4()

    def _fits_int4(self) -> bool:
        """Return whether the device multiplies by these 4-bit codes as they are."""
        w = self.weight_codes
        if w.spec.dtype not in ("int4", "uint4"):
            return False
        if w.group not in _INT4_GROUPS:
            return False
        scaled_rows = w.scale.shape[0]
        if scaled_rows != w.rows or w.rows % 32 != 0:
            return False
        device = w.codes.device
        return not accelerators.on(device).missing_int4(device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A pickled layer may have come from another machine.
        self._on_kernel = self._fits_int4()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        _follow(self)
        # Another device has other kernels.
        self._on_kernel = self._fits_int4()
        return self

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers, with what its input is multiplied by first."""
        weight = self.weight_codes.whole()
        if self.factors is not None:
            weight = weight * self.factors
        if self.transposed:
            weight = weight.t()
        return weight.to(self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output."""
        x = input  # torch.nn's name: a layer alone may be called by it
        if self.factors is not None:
            x = x * self.factors.to(x.dtype)
        y = self._of_codes(x)
        repair = self.weight_codes.repaired(x.to(y.dtype))
        if repair is not None:
            y = y + repair
        return post(self.then, y)

    def _of_codes(self, x: Tensor) -> Tensor:
        """Return x W^T + b, as the codes alone have it."""
        if x.requires_grad and torch.is_grad_enabled():
            y: Tensor = _Recomputed.apply(x, self)  # type: ignore[no-untyped-call]
            return y
        compiling = torch.compiler.is_compiling()
        if self._on_kernel and not (compiling and is_portable()):
            multiply = torch.ops.octavo.int4_linear if compiling else int4_linear
            return self._int4(x, multiply)
        return self._in_blocks(x)

    def _int4(self, x: Tensor, multiply: Callable[..., Tensor]) -> Tensor:
        w = self.weight_codes
        values = x.detach()
        y = multiply(values, w.codes, w.scale, w.offset, w.lowest)
        dtype = result_dtype(self.dtype, x.device)
        y = y.to(dtype)
        if self.bias is None:
            return y
        return y + self.bias.to(y.dtype)

    def _in_blocks(self, x: Tensor) -> Tensor:
        w = self.weight_codes
        flat = x.reshape(-1, w.features)
        flat = flat.to(self.dtype)
        parts = []
        for rows in w.blocks():
            block = w.decode(w.codes[rows], rows)
            weight = block.to(self.dtype)
            bias = None if self.bias is None else self.bias[rows]
            part = nn.functional.linear(flat, weight, bias)
            parts.append(part)
        y = _joined(parts, -1)
        places = x.shape[:-1]
        return y.view(*places, w.rows)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    """Return parts side by side; a single one is not copied."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, axis)


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
        for rows in w.blocks():
            block = w.decode(w.codes[rows], rows)
            weight = block.to(flat.dtype)
            total.addmm_(flat[:, rows], weight)
        places = grad.shape[:-1]
        result = total.view(*places, w.features)
        return result.to(ctx.kind), None


class WeightOnlyEmbedding(Coded):
    """A table whose rows are decoded as they are looked up.

    Args:
        weight: Its codes.
        dtype: Of the result.
        bag: The original module, where rows are summed or averaged in bags.
    """

    def __init__(
        self,
        weight: QuantizedTensor,
        dtype: torch.dtype,
        bag: nn.EmbeddingBag | None = None,
    ) -> None:
        super().__init__()
        self.weight_codes = StoredWeight(weight)
        self.dtype = dtype
        self.bag: tuple[str, bool] | None = None
        self.padding: int | None = None
        if bag is not None:
            includes_last = bool(bag.include_last_offset)
            self.bag = (str(bag.mode), includes_last)
            self.padding = bag.padding_idx

    def decoded_weight(self) -> Tensor:
        """Return the table as float numbers."""
        table = self.weight_codes.whole()
        return table.to(self.dtype)

    def _rows(self, ids: Tensor) -> Tensor:
        w = self.weight_codes
        flat = ids.reshape(-1)
        codes = nn.functional.embedding(flat, w.codes)
        rows = w.numbers(codes, flat)
        return rows.to(self.dtype)

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the rows of ``input``, or one sum of rows for each bag."""
        ids = input  # torch.nn's name: a layer alone may be called by it
        if self.bag is None:
            rows = self._rows(ids)
            return rows.view(*ids.shape, self.weight_codes.features)
        mode, includes_last = self.bag
        used, places = torch.unique(ids, return_inverse=True)
        return nn.functional.embedding_bag(
            places,
            self._rows(used),
            offsets,
            mode=mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=includes_last,
            padding_idx=self._padding_among(used),
        )

    def _padding_among(self, used: Tensor) -> int | None:
        """Return where the padding's row is among those that are looked up; None if it is not."""
        if self.padding is None:
            return None
        is_padding = used == self.padding
        if not bool(is_padding.any()):
            return None
        return int(is_padding.nonzero()[0, 0])


class WeightOnlyConv(Coded):
    """A convolution with its weight in few bits; output channels are decoded a block at a time.

    Args:
        weight: Its codes.
        bias: Or None.
        dtype: Of the result.
        geometry: Stride, symmetric padding, dilation, groups.
        pads: Extra zeros (as ``torch.nn.functional.pad`` takes them) where the padding is not
            symmetric.
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
        if bias is not None:
            bias = bias.detach().to(dtype)
        self.register_buffer("bias", bias)
        self.shape = tuple(weight.shape[1:])
        self.dtype = dtype
        self.geometry = geometry
        self.pads = pads
        self.then = then
        axes = len(self.shape) - 1
        self._convolve = _CONVOLUTIONS[axes - 1]

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers."""
        whole = self.weight_codes.whole()
        weight = whole.view(-1, *self.shape)
        return weight.to(self.dtype)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        _follow(self)
        return self

    def forward(self, input: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the layer's output, ``other`` added before the activation function."""
        x = input  # torch.nn's name: a layer alone may be called by it
        w = self.weight_codes
        if self.pads:
            x = nn.functional.pad(x, self.pads)
        # Groups read other channels each: their weights, which are small, are decoded together.
        groups = self.geometry[3]
        step = w.step if groups == 1 else w.rows
        parts = []
        for rows in w.blocks(step):
            block = w.numbers(w.codes[rows], rows)
            weight = block.view(-1, *self.shape)
            weight = weight.to(self.dtype)
            bias = None if self.bias is None else self.bias[rows]
            part = self._convolve(x, weight, bias, *self.geometry)
            parts.append(part)
        # Counted from the end, since a single sample may have no axis for the batch.
        channels = -len(self.shape)
        y = _joined(parts, channels)
        if other is not None:
            y = y + other
        return post(self.then, y)
