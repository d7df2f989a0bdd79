"""Transposed convolutions on the integer kernels of ordinary ones (:mod:`~.subpixel`).

Torch's own integer kernels for them take one scale for the whole weight, are slower than the float ones, and answer wrongly for
dynamic inputs and for some 2 x 2 kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.kernels import onednn
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.kernels.arithmetic import Integers, format_of
from octavo.adapters.pytorch.kernels.layouts import content, layout
from octavo.adapters.pytorch.kernels.operators import (
    RESULT,
    SOURCE,
    Arguments,
    is_portable,
    register,
    source_arguments,
)
from octavo.adapters.pytorch.kernels.posts import post
from octavo.adapters.pytorch.kernels.windows import Geometry, padded

from .differentiable import as_values, differentiable, needs_gradient
from .int8 import Int8Layer
from .subpixel import Geometry as Upsampling
from .subpixel import Phase, Step, output_places, steps

Tensor = torch.Tensor
_FLOAT = (
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)


class TransposedArithmetic(Integers):
    """A transposed convolution on integer kernels; its codes are (inputs, outputs / groups, *kernel), and groups share their scales."""

    def upsampled(self, x: Tensor, geometry: Upsampling) -> Tensor:
        """Return the layer's output: float, or uint8 codes if it gives codes."""
        source, form, n = (
            self.source or Activation.around(x, self.symmetric),
            format_of(self.codes),
            len(geometry[0]),
        )
        codes = (x if x.dtype == torch.uint8 else source.quantize(x)).contiguous(memory_format=form)
        groups, result = geometry[4], self.result()
        # oneDNN has kernels of its own where every group is one channel in and one out: those are not put together.
        plan, empty = steps(
            self._kernel, geometry, self.codes.shape[0] > groups or self.codes.shape[1] > 1
        )
        places = output_places(tuple(x.shape[2:]), self._kernel, geometry)
        y = torch.empty(
            (x.shape[0], self.codes.shape[1] * groups, *places),
            dtype=result[2],
            device=x.device,
            memory_format=form,
        )
        grouped = torch.unflatten(y, 1, (groups, -1))
        for step in plan:
            counts = [
                [max(0, x.shape[2 + i] + phase.more[i]) for i in range(n)] for phase in step.phases
            ]
            if not any(all(each) for each in counts):
                continue  # the padding leaves nothing of these phases
            own, plain = padded(
                codes,
                source.zero_point,
                self._shape(step, groups),
                ([1] * n, step.padding, step.dilation, groups),
            )
            packed, scale, zeros, bias = self._laid_out(step, plain, source)
            head = (
                own.contiguous(memory_format=form),
                source.scale,
                source.zero_point,
                packed,
                scale,
                zeros,
                bias,
                plain,
            )
            part = onednn.conv_u8(*head, *result, self.then == "relu")
            if max(geometry[0]) == 1 and part.shape == y.shape:
                return part
            parts = torch.unflatten(part, 1, (groups, len(step.phases), -1))
            for i, phase in enumerate(step.phases):
                if not all(counts[i]):
                    continue
                chosen = parts[:, :, i]
                for axis in range(n):
                    chosen = chosen.narrow(3 + axis, phase.first[axis], counts[i][axis])
                _places(grouped, phase, geometry).copy_(chosen)
        for phase in empty:
            _places(grouped, phase, geometry).copy_(
                self._untouched(groups).view(groups, -1, *[1] * n)
            )
        return y

    @property
    def _kernel(self) -> tuple[int, ...]:
        return tuple(self.codes.shape[2:])

    def _shape(self, step: Step, groups: int) -> tuple[int, ...]:
        """Return the shape of one step's weight."""
        taps = (len(each) for each in step.phases[0].taps)
        return (
            groups * len(step.phases) * self.codes.shape[1],
            self.codes.shape[0] // groups,
            *taps,
        )

    def _laid_out(
        self, step: Step, plain: Geometry, source: Activation
    ) -> tuple[Any, Tensor, Tensor, Tensor | None]:
        """Return the weight of one step as the kernel wants it, with its scales, zero points and bias; made at the first call."""
        key = ("transposed", step, repr(plain), content(self.scale), content(self.bias))
        made: tuple[Any, Tensor, Tensor, Tensor | None] = layout(
            self.codes, key, lambda: self._lay_out(step, plain, source)
        )
        return made

    def _lay_out(
        self, step: Step, plain: Geometry, source: Activation
    ) -> tuple[Any, Tensor, Tensor, Tensor | None]:
        groups, outputs = plain[3], self.codes.shape[1]
        whole = torch.unflatten(self.codes, 0, (groups, -1)).transpose(1, 2)
        phases = []
        for phase in step.phases:
            chosen = whole
            for axis, taps in enumerate(phase.taps):
                chosen = chosen.index_select(3 + axis, torch.tensor(taps, device=chosen.device))
            phases.append(chosen)
        # (groups * phases * outputs, inputs / groups, *taps)
        weight = torch.stack(phases, 1).flatten(0, 2).contiguous()
        each = self.scale.numel() > 1
        scale = self.scale.repeat(groups * len(phases)) if each else self.scale
        bias = (
            None
            if self.bias is None
            else self.bias.view(groups, 1, outputs).expand(-1, len(phases), -1).reshape(-1)
        )
        packed = onednn.pack_conv(weight, scale, source.scale, source.zero_point, plain)
        return packed, scale, torch.zeros(scale.numel(), dtype=torch.int32), bias

    def _untouched(self, groups: int) -> Tensor:
        """Return what no tap reaches: the bias of each output, as the result holds it."""
        outputs = self.codes.shape[1] * groups
        bias = torch.zeros(outputs, device=self.codes.device) if self.bias is None else self.bias
        bias = post(self.then, bias)
        return bias if self.gives is None else self.gives.quantize(bias)


def _places(grouped: Tensor, phase: Phase, geometry: Upsampling) -> Tensor:
    """Return the view of an output (batch, groups, channels, *places) at the places of one phase."""
    chosen: list[Any] = [
        slice(r, None, s) for r, s in zip(phase.residues, geometry[0], strict=True)
    ]
    return grouped[(..., *chosen)]


class Int8ConvTranspose(Int8Layer, TransposedArithmetic):
    """A transposed convolution with int8 products. It takes float values, or uint8 codes of its static input.

    Args:
        geometry: See :data:`~.subpixel.Geometry`.
    """

    def __init__(self, *args: Any, geometry: Upsampling, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.geometry = geometry

    def _channel_axis(self) -> int:
        return 1

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the layer's output: float, or uint8 codes if it gives codes."""
        if (
            x.ndim < self.codes.ndim
        ):  # a single sample without an axis for the batch, as float layers take it
            return self.forward(x[None], output_size).squeeze(0)
        geometry = self._sized(x, output_size)
        if needs_gradient(x):
            return differentiable(
                lambda x: as_values(self.forward(x, output_size), self.gives, self.dtype),
                lambda x: self._portable(x, geometry),
                x,
            )
        if self.saturating:
            return self._portable(x, geometry)
        if not torch.compiler.is_compiling():
            return self.upsampled(x, geometry)
        return self._portable(x, geometry) if is_portable() else self._operator(x, geometry)

    def _sized(self, x: Tensor, output_size: Sequence[int] | None) -> Upsampling:
        """Return the geometry whose output has the size that was asked for (torch's ``output_size``)."""
        if output_size is None:
            return self.geometry
        stride, padding, _, dilation, groups = self.geometry
        n = len(stride)
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, self.codes.shape[2:], strict=True)]
        least = [(x.shape[i - n] - 1) * stride[i] - 2 * padding[i] + reach[i] for i in range(n)]
        extra = [int(size) - low for size, low in zip(output_size[-n:], least, strict=True)]
        if any(not 0 <= e < s for e, s in zip(extra, stride, strict=True)):
            raise ValueError(
                f"output_size {tuple(output_size)}: each axis can be {least} and up to stride - 1 = {[s - 1 for s in stride]} more"
            )
        return stride, padding, tuple(extra), dilation, groups

    def _operator(self, x: Tensor, geometry: Upsampling) -> Tensor:
        source = source_arguments(self.source, self.symmetric)
        head = (x.detach(), self.codes, self.scale, self.bias, *geometry)
        y: Tensor = torch.ops.octavo.int8_conv_transpose(*head, *source, *self.result(), self.then)
        return y

    def _portable(self, x: Tensor, geometry: Upsampling) -> Tensor:
        codes, scale = self._portable_source(x)
        stride, padding, extra, dilation, groups = geometry
        y = _FLOAT[len(stride) - 1](
            codes, self.codes.float(), None, stride, padding, extra, groups, dilation
        )
        shape = (1, -1, *[1] * len(stride))
        each = self.scale.repeat(groups) if self.scale.numel() > 1 else self.scale
        y = y * each.view(shape) * scale
        y = y if self.bias is None else y + self.bias.view(shape)
        return self._portable_result(post(self.then, y))


class _Transposed(Arguments, TransposedArithmetic):
    pass


def _geometry(rest: Sequence[Any]) -> Upsampling:
    stride, padding, extra, dilation, groups = rest
    return tuple(stride), tuple(padding), tuple(extra), tuple(dilation), groups


def _run(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    layer = _Transposed((codes, scale, bias), rest[5:8], rest[8:])
    return layer.upsampled(x, _geometry(rest[:5])).contiguous(memory_format=format_of(codes))


def _form(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    geometry = _geometry(rest[:5])
    shape = (
        x.shape[0],
        codes.shape[1] * geometry[4],
        *output_places(tuple(x.shape[2:]), tuple(codes.shape[2:]), geometry),
    )
    return torch.empty(shape, dtype=rest[-2], device=x.device, memory_format=format_of(codes))


register(
    "int8_conv_transpose(Tensor x, Tensor codes, Tensor scale, Tensor? bias, int[] stride, int[] padding, SymInt[] output_padding, "
    f"int[] dilation, int groups, {SOURCE}, {RESULT}) -> Tensor",
    _run,
    _form,
)
