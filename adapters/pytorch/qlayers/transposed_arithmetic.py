"""How a transposed convolution computes on integer kernels, and the same as an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from octavo.adapters.pytorch.kernels import onednn
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.kernels.arithmetic import Integers, format_of
from octavo.adapters.pytorch.kernels.layouts import content, layout
from octavo.adapters.pytorch.kernels.operators import (
    RESULT,
    SOURCE,
    Arguments,
    register,
)
from octavo.adapters.pytorch.kernels.posts import post
from octavo.adapters.pytorch.kernels.windows import Geometry, padded

from .subpixel import Geometry as Upsampling
from .subpixel import Phase, Step, output_places, steps

Tensor = torch.Tensor
_LaidOut = tuple[Any, Tensor, Tensor, Tensor | None]
"""A packed weight, its scales and zero points, and the bias."""


class TransposedArithmetic(Integers):
    """A transposed convolution on integer kernels.

    Its codes are (inputs, outputs / groups, *kernel), and groups share their scales.
    """

    def upsampled(self, x: Tensor, geometry: Upsampling) -> Tensor:
        """Return the layer's output: float, or uint8 codes if it gives codes."""
        source = self.source
        if source is None:
            source = Activation.around(x, self.symmetric)
        form = format_of(self.codes)
        codes = x
        if x.dtype != torch.uint8:
            codes = source.quantize(x)
        codes = codes.contiguous(memory_format=form)
        groups = geometry[4]
        # oneDNN has kernels of its own where every group is one channel in and one out: those are
        # not put together.
        inputs, outputs = self.codes.shape[:2]
        together = inputs > groups or outputs > 1
        plan, empty = steps(self._kernel, geometry, together)
        result = self.result()
        y = self._room(x, geometry, result[2])
        grouped = torch.unflatten(y, 1, (groups, -1))
        for step in plan:
            counts = [_counts(phase, x) for phase in step.phases]
            if not any(all(each) for each in counts):
                continue  # the padding leaves nothing of these phases
            part = self._convolved(codes, step, source, groups, result)
            # With strides of one there is one phase, which may be the whole output.
            if max(geometry[0]) == 1 and part.shape == y.shape:
                return part
            _spread(part, step, counts, grouped, geometry)
        for phase in empty:
            rest = self._untouched(groups, len(geometry[0]))
            own = _places(grouped, phase, geometry)
            own.copy_(rest)
        return y

    def _room(self, x: Tensor, geometry: Upsampling, dtype: torch.dtype) -> Tensor:
        """Return an output that is not filled yet."""
        groups = geometry[4]
        channels = self.codes.shape[1] * groups
        inner = tuple(x.shape[2:])
        places = output_places(inner, self._kernel, geometry)
        return torch.empty(
            (x.shape[0], channels, *places),
            dtype=dtype,
            device=x.device,
            memory_format=format_of(self.codes),
        )

    def _convolved(
        self,
        codes: Tensor,
        step: Step,
        source: Activation,
        groups: int,
        result: tuple[float, int, torch.dtype],
    ) -> Tensor:
        """Return what one step's convolution computes."""
        stride = [1] * len(step.padding)
        shape = self._shape(step, groups)
        geometry = (stride, step.padding, step.dilation, groups)
        own, plain = padded(codes, source.zero_point, shape, geometry)
        packed, scale, zeros, bias = self._laid_out(step, plain, source)
        return onednn.conv_u8(
            own.contiguous(memory_format=format_of(self.codes)),
            source.scale,
            source.zero_point,
            packed,
            scale,
            zeros,
            bias,
            plain,
            *result,
            self.then == "relu",
        )

    @property
    def _kernel(self) -> tuple[int, ...]:
        return tuple(self.codes.shape[2:])

    def _shape(self, step: Step, groups: int) -> tuple[int, ...]:
        """Return the shape of one step's weight."""
        inputs, outputs = self.codes.shape[:2]
        phases = step.phases
        taps = (len(each) for each in phases[0].taps)
        channels = groups * len(phases) * outputs
        return (channels, inputs // groups, *taps)

    def _laid_out(self, step: Step, plain: Geometry, source: Activation) -> _LaidOut:
        """Return the weight of one step as the kernel wants it; made at the first call."""
        # Scales and bias lie beside the weight in what the kernel is given.
        key = (
            "transposed",
            step,
            repr(plain),
            content(self.scale),
            content(self.bias),
        )
        made: _LaidOut = layout(
            self.codes,
            key,
            lambda: self._lay_out(step, plain, source),
        )
        return made

    def _lay_out(self, step: Step, plain: Geometry, source: Activation) -> _LaidOut:
        groups = plain[3]
        count = len(step.phases)
        whole = torch.unflatten(self.codes, 0, (groups, -1))
        whole = whole.transpose(1, 2)
        phases = [_with_taps(whole, phase) for phase in step.phases]
        # (groups * phases * outputs, inputs / groups, *taps)
        weight = torch.stack(phases, 1)
        weight = weight.flatten(0, 2).contiguous()
        scale = self.scale
        if scale.numel() > 1:
            scale = scale.repeat(groups * count)
        bias = self.bias
        if bias is not None:
            outputs = self.codes.shape[1]
            own = bias.view(groups, 1, outputs)
            each = own.expand(-1, count, -1)
            bias = each.reshape(-1)
        packed = onednn.pack_conv(weight, scale, source.scale, source.zero_point, plain)
        channels = scale.numel()
        zeros = torch.zeros(channels, dtype=torch.int32)
        return packed, scale, zeros, bias

    def _untouched(self, groups: int, axes: int) -> Tensor:
        """Return what no tap reaches: the bias of each output, as the result holds it.

        It is (groups, outputs, *ones), of so many axes.
        """
        bias = self.bias
        if bias is None:
            channels = self.codes.shape[1] * groups
            bias = torch.zeros(channels, device=self.codes.device)
        value = post(self.then, bias)
        if self.gives is not None:
            value = self.gives.quantize(value)
        ones = [1] * axes
        return value.view(groups, -1, *ones)


def _with_taps(weight: Tensor, phase: Phase) -> Tensor:
    """Return the taps that a phase reads, of (groups, outputs, inputs, *kernel)."""
    for axis, taps in enumerate(phase.taps):
        indices = torch.tensor(taps, device=weight.device)
        weight = weight.index_select(3 + axis, indices)
    return weight


def _counts(phase: Phase, x: Tensor) -> list[int]:
    """Return how many outputs of a phase there are on each axis."""
    counts = []
    for places, more in zip(x.shape[2:], phase.more, strict=True):
        counts.append(max(0, places + more))
    return counts


def _spread(
    part: Tensor,
    step: Step,
    counts: list[list[int]],
    grouped: Tensor,
    geometry: Upsampling,
) -> None:
    """Copy what one convolution computed to the places of its phases.

    Args:
        part: (batch, groups * phases * outputs, *places).
        step: What computed it.
        counts: How many outputs each phase has on each axis.
        grouped: The whole output, (batch, groups, outputs, *places).
        geometry: Of the transposed convolution.
    """
    groups = grouped.shape[1]
    phases = len(step.phases)
    parts = torch.unflatten(part, 1, (groups, phases, -1))
    for i, phase in enumerate(step.phases):
        # The padding leaves nothing of some phases.
        if not all(counts[i]):
            continue
        chosen = parts[:, :, i]
        for axis, count in enumerate(counts[i]):
            first = phase.first[axis]
            chosen = chosen.narrow(3 + axis, first, count)
        own = _places(grouped, phase, geometry)
        own.copy_(chosen)


def _places(grouped: Tensor, phase: Phase, geometry: Upsampling) -> Tensor:
    """Return the view at one phase's places of (batch, groups, channels, *places)."""
    stride = geometry[0]
    chosen: list[Any] = [...]
    for first, apart in zip(phase.residues, stride, strict=True):
        chosen.append(slice(first, None, apart))
    return grouped[tuple(chosen)]


class _Call(Arguments, TransposedArithmetic):
    """One call of the operator."""


def _geometry(rest: Sequence[Any]) -> Upsampling:
    # Operators are given lists; plans are looked up by tuples.
    *lists, groups = rest
    stride, padding, extra, dilation = map(tuple, lists)
    return stride, padding, extra, dilation, groups


def _run(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    geometry = _geometry(rest[:5])
    tensors = (codes, scale, bias)
    call = _Call(tensors, rest[5:8], rest[8:])
    y = call.upsampled(x, geometry)
    return y.contiguous(memory_format=format_of(codes))


def _result_form(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    geometry = _geometry(rest[:5])
    groups = geometry[4]
    channels = codes.shape[1] * groups
    kernel = tuple(codes.shape[2:])
    inner = tuple(x.shape[2:])
    places = output_places(inner, kernel, geometry)
    return torch.empty(
        (x.shape[0], channels, *places),
        dtype=rest[-2],
        device=x.device,
        memory_format=format_of(codes),
    )


register(
    "int8_conv_transpose(Tensor x, Tensor codes, Tensor scale, Tensor? bias, int[] stride, "
    "int[] padding, SymInt[] output_padding, int[] dilation, int groups, "
    f"{SOURCE}, {RESULT}) -> Tensor",
    _run,
    _result_form,
)
