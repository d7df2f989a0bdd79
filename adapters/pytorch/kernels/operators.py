"""The integer kernels as operators of ``torch.ops.octavo``.

Compilers carry them in their graphs without looking inside. They take plain tensors (codes, scales,
bias) and numbers; what a kernel wants laid out is made of the codes at the first call and is no
part of a graph (:mod:`~.layouts`). Each runs the very code of the eager layer. They have no
gradient, as the kernels have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .activation import Activation
from .arithmetic import ConvArithmetic, LinearArithmetic, format_of
from .windows import output_places

Tensor = torch.Tensor
# Rather than ``custom_op``, whose wrapper costs several times the dispatch of a call.
_LIBRARY: Any = torch.library.Library("octavo", "DEF")  # type: ignore[no-untyped-call]
SOURCE = "float? source_scale, int[] source_codes, bool symmetric"
RESULT = "float result_scale, int result_zero_point, ScalarType dtype, str then"
"""How schemas name what :class:`Arguments` takes."""
SourceArguments = tuple[float | None, Sequence[int], bool]
ResultArguments = tuple[float, int, torch.dtype, str]


def is_portable() -> bool:
    """True where a program is recorded that must run without octavo.

    In ``torch.export``, and in any tracer of a torch before 2.7: torch 2.6 does not tell an export
    from a compilation.
    """
    return not hasattr(torch.compiler, "is_exporting") or torch.compiler.is_exporting()


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Add an operator.

    Args:
        schema: Its name and arguments, as torch writes them.
        run: What it computes, on every device.
        fake: A tensor of the result's form from tensors without numbers.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"octavo::{name}", fake, lib=_LIBRARY)


def source_arguments(source: Activation | None, symmetric: bool) -> SourceArguments:
    """Return how operators take the parameters of an input."""
    if source is None:
        return None, (), symmetric
    codes = (source.zero_point, source.low, source.high)
    return source.scale, codes, symmetric


class Arguments:
    """What the arguments of one call have in common with a layer."""

    def __init__(
        self,
        tensors: tuple[Tensor, Tensor, Tensor | None],
        source: SourceArguments,
        result: ResultArguments,
    ) -> None:
        self.codes, self.scale, self.bias = tensors
        scale, codes, self.symmetric = source
        self.source = None if scale is None else Activation(scale, *codes)
        out_scale, out_zero_point, self.dtype, self.then = result
        self.gives = (
            Activation(out_scale, out_zero_point) if self.dtype == torch.uint8 else None
        )


class _Linear(Arguments, LinearArithmetic):
    memo = stacked = None


class _Conv(Arguments, ConvArithmetic):
    pass


def _linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    per_token: bool,
    transposed: bool,
    *rest: Any,
) -> Tensor:
    layer = _Linear((codes, scale, bias), rest[:3], rest[3:])
    layer.factors = factors
    layer.per_token = per_token
    layer.transposed = transposed
    layer.choose()
    return layer.multiplied(x)


def _linear_form(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    transposed, dtype = rest[4], rest[-2]
    return x.new_empty(
        (*x.shape[:-1], codes.shape[1 if transposed else 0]), dtype=dtype
    )


register(
    "int8_linear(Tensor x, Tensor codes, Tensor scale, Tensor? bias, Tensor? factors, "
    f"bool per_token, bool transposed, {SOURCE}, {RESULT}) -> Tensor",
    _linear,
    _linear_form,
)


def _conv(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    other_scale: float | None,
    other_zero_point: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pads: list[int],
    *rest: Any,
) -> Tensor:
    layer = _Conv((codes, scale, bias), rest[:3], rest[3:])
    layer.geometry = (stride, padding, dilation, groups)
    layer.pads = tuple(pads)
    layer.other = (
        None if other_scale is None else Activation(other_scale, other_zero_point)
    )
    form = format_of(codes)
    # The kernel writes into what it adds, and an operator must not.
    added = None if other is None else other.clone(memory_format=form)
    return layer.convolved(x, added).contiguous(memory_format=form)


def _conv_form(x: Tensor, codes: Tensor, *rest: Any) -> Tensor:
    geometry, pads, dtype = rest[5:9], rest[9], rest[-2]
    # Both ends of the last axis come first.
    added = [
        first + second for first, second in zip(pads[::2], pads[1::2], strict=True)
    ]
    around = added[::-1] or [0] * (codes.ndim - 2)
    room = [size + zeros for size, zeros in zip(x.shape[2:], around, strict=True)]
    shape = (
        x.shape[0],
        codes.shape[0],
        *output_places(room, codes.shape[2:], geometry),
    )
    form = format_of(codes)
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=form)


register(
    "int8_conv(Tensor x, Tensor codes, Tensor scale, Tensor? bias, Tensor? other, "
    "float? other_scale, int other_zero_point, int[] stride, int[] padding, int[] dilation, "
    f"int groups, int[] pads, {SOURCE}, {RESULT}) -> Tensor",
    _conv,
    _conv_form,
)
