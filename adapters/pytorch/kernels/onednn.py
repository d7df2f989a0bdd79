"""Integer kernels of oneDNN on plain tensors, and whether this machine really has them.

Activations are uint8, because oneDNN's x86 kernels multiply unsigned by signed bytes; a signed int8 scheme is the same
numbers shifted by 128. Weights are int8, symmetric, with one scale for each output channel or one for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from math import nan
from typing import Any

import torch

from .windows import Geometry, output_places, padded

_MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves round-to-nearest-even(x) in the low bits of a float32

_SMALL = 2**17
_BLOCK = 2**19
"""So many elements are worked on at a time: what is made of them on the way stays in the cache, and no large temporary is allocated."""
_TINY = 1e-30

Tensor = torch.Tensor

# Looked up once: for few rows the way to an operator's name is as long as what it computes. None where a build of torch lacks it.
ROWS_DYNAMIC: Any = getattr(torch.ops.quantized, "linear_dynamic", None)
ROWS_STATIC: Any = getattr(
    torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32", None
)


@cache
def _constant(value: float, device: torch.device) -> Tensor:
    return torch.full((), value, device=device)


def is_portable() -> bool:
    """True where a program is recorded that must run without octavo: in ``torch.export``, and in any tracer of a torch before 2.7.

    torch 2.6 does not tell an export from a compilation.
    """
    return not hasattr(torch.compiler, "is_exporting") or torch.compiler.is_exporting()


def quantize_u8(
    x: Tensor, scale: float, zero_point: int, low: int, high: int, factors: Tensor | None = None
) -> Tensor:
    """Return uint8 codes clip(round(x / scale) + zero_point, low, high), same shape.

    One pass over memory on a CPU. Elsewhere, and with factors, three: the rounding is a float32 addition, the conversion takes the
    low byte. On a CPU large tensors go through them a block at a time, which stays in the cache.

    Args:
        x: Float values.
        scale: Their scale.
        zero_point: Code of zero.
        low: Smallest code.
        high: Largest code.
        factors: One float32 multiplier per channel of the last axis, in place of 1 / scale.
    """
    if torch.compiler.is_compiling():
        # Torch's kernel adds the zero point before it rounds, and multiplies by the inverse in float32: so a compiler can fuse the same.
        start = torch.full((), float(zero_point), device=x.device)
        steps = (
            torch.full((), 1.0, device=x.device) / torch.full((), scale, device=x.device)
            if factors is None
            else factors
        )
        return torch.round(torch.addcmul(start, x.float(), steps)).clamp(low, high).to(torch.uint8)
    x = x if x.dtype == torch.float32 else x.float()
    if factors is None and x.device.type == "cpu" and not missing_quantize():
        codes = _quantized(x, scale, zero_point)
        return codes if (low, high) == (0, 255) else codes.clamp_(low, high)
    return _rounded(x, scale, zero_point, low, high, factors)


def _quantized(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Quantize over the whole of uint8 and return the codes as a plain tensor, without copying them."""
    made = torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)
    return torch.empty(0, dtype=torch.uint8).set_(
        made.untyped_storage(), 0, made.shape, made.stride()
    )


def _rounded(
    x: Tensor, scale: float, zero_point: int, low: int, high: int, factors: Tensor | None
) -> Tensor:
    start = _constant(_MAGIC + zero_point, x.device)

    def shifted(x: Tensor, out: Tensor | None = None) -> Tensor:
        y = (
            torch.add(start, x, alpha=1.0 / scale, out=out)
            if factors is None
            else torch.addcmul(start, x, factors, out=out)
        )
        return y.clamp_(_MAGIC + low, _MAGIC + high).view(torch.int32)

    if x.device.type != "cpu" or x.numel() <= _BLOCK:
        return shifted(x).to(torch.uint8)
    rows = x.reshape(-1, x.shape[-1])
    size = max(1, _BLOCK // rows.shape[-1])
    codes, room = torch.empty(rows.shape, dtype=torch.uint8), torch.empty(size, rows.shape[-1])
    for block, into in zip(torch.split(rows, size), torch.split(codes, size), strict=True):
        into.copy_(shifted(block, room[: len(block)]))
    return codes.view(x.shape)


@cache
def missing_quantize() -> str:
    """Return why torch's own quantization of a tensor cannot be used; empty when it was run and gave the right codes."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(3, 33, generator=generator).t()
        with warnings.catch_warnings():
            # torch announces the end of its quantized tensors, once in a process.
            warnings.simplefilter("ignore")
            return _quantized(x, 0.02, 77), (torch.round(x.double() / 0.02) + 77).clamp(0, 255)

    return fault("torch.quantize_per_tensor", 0.005, run)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return uint8 codes with zero point 128 and one scale for each row of the last axis, float32, shape (..., 1).

    A row's largest magnitude becomes 127, so that nothing needs clamping; a row of zeros stays zeros.
    """
    x = x if x.dtype == torch.float32 else x.float()
    if x.numel() < _SMALL:
        largest = x.abs().amax(
            -1, keepdim=True
        )  # fewer calls; for large tensors two readings beat a copy
    else:
        largest = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())
    largest = largest.clamp_(min=_TINY)
    steps = 127.0 / largest
    if torch.compiler.is_compiling():
        return (torch.round(x * steps) + 128).clamp(0, 255).to(torch.uint8), largest / 127.0
    shifted = torch.addcmul(_constant(_MAGIC + 128, x.device), x, steps)
    codes: Tensor = shifted.view(torch.int32).to(torch.uint8)
    return codes, largest / 127.0


POSTS = {
    "": ("none", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
}
"""Activation functions that the linear kernel applies to its result: name -> the kernel's name and variant."""


def post(name: str, x: Tensor) -> Tensor:
    """Apply an activation function of :data:`POSTS`."""
    if name == "relu":
        return torch.relu(x)
    if name == "silu":
        return torch.nn.functional.silu(x)
    return (
        torch.nn.functional.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")
        if name
        else x
    )


def pack_linear(codes: Tensor) -> Tensor:
    """Lay int8 codes (outputs, inputs) out for :func:`linear_u8`."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
    return packed


def linear_u8(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bias: Tensor | None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
    dtype: torch.dtype = torch.float32,
    then: str = "",
) -> Tensor:
    """Multiply uint8 codes (..., inputs) by a packed weight and apply ``then``; the result is float, or uint8 with the given scale."""
    if not x.numel():
        return x.new_empty(
            (*x.shape[:-1], packed.shape[1]), dtype=dtype
        )  # the kernel drops axes of such a tensor
    written = _written(dtype, 0)
    # The kernel reads scale and bias as they lie in memory, whatever their strides.
    head = (
        x,
        x_scale,
        x_zero_point,
        packed,
        scale.contiguous(),
        zero_point,
        None if bias is None else bias.contiguous(),
    )
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        *head, out_scale, out_zero_point, written, POSTS[then][0], [], POSTS[then][1]
    )
    return y if written == dtype else y.to(dtype)


def pack_conv(
    codes: Tensor, scale: Tensor, x_scale: float, x_zero_point: int, geometry: Geometry
) -> Tensor:
    """Lay int8 codes (outputs, inputs / groups, *kernel) out for :func:`conv_u8`."""
    stride, padding, dilation, groups = geometry
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        codes, scale, x_scale, x_zero_point, stride, padding, dilation, groups, None
    )
    return packed


def conv_u8(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
    dtype: torch.dtype = torch.float32,
    relu: bool = False,
    other: Tensor | None = None,
    other_scale: float = 1.0,
    other_zero_point: int = 0,
) -> Tensor:
    """Convolve uint8 codes with a packed weight, add ``other`` and clamp at zero if asked.

    One kernel does it all, but for what it lacks: over one and three axes it adds nothing, over three it clamps nothing, and
    some processors write no 16-bit results. That is done to its result then.

    Args:
        x: uint8 (batch, channels, *places).
        x_scale: Its scale.
        x_zero_point: Its code of zero.
        packed: From :func:`pack_conv`.
        scale: Scales of the weight.
        zero_point: Zeros, as many.
        bias: float32 or None.
        geometry: Of the convolution.
        out_scale: Scale of a uint8 result.
        out_zero_point: Code of zero of a uint8 result.
        dtype: Of the result: uint8 or a floating type.
        relu: Clamp at zero.
        other: Has the result's dtype; the kernel may write into it.
        other_scale: Scale of a uint8 ``other``.
        other_zero_point: Code of zero of a uint8 ``other``.
    """
    dims = x.ndim - 2
    taps = packed.shape[-dims:]  # a weight of one axis is packed with two
    x, geometry = padded(x, x_zero_point, (packed.shape[0], packed.shape[1], *taps), geometry)
    if not x.numel():
        return x.new_empty(
            (x.shape[0], packed.shape[0], *output_places(x.shape[2:], taps, geometry)), dtype=dtype
        )
    # The kernel reads scale and bias as they lie in memory, whatever their strides.
    head: tuple[Any, ...] = (x, x_scale, x_zero_point, packed, scale.contiguous(), zero_point)
    shape: tuple[Any, ...] = (None if bias is None else bias.contiguous(), *geometry)
    added = other is not None and dims == 2
    if other is not None and not added:
        values = (
            other.float()
            if dtype != torch.uint8
            else (other.float() - other_zero_point) * other_scale
        )
        y: Tensor = torch.ops.onednn.qconv_pointwise(
            *head, *shape, 1.0, 0, torch.float32, "none", [], ""
        ).add_(values)
        y = y.relu_() if relu else y
        return (
            y.to(dtype)
            if dtype != torch.uint8
            else quantize_u8(y, out_scale, out_zero_point, 0, 255)
        )
    written = _written(dtype, dims)
    then = "relu" if relu and dims < 3 else "none"
    result: tuple[Any, ...] = (out_scale, out_zero_point, written)
    if other is None:
        y = torch.ops.onednn.qconv_pointwise(*head, *shape, *result, then, [], "")
    else:
        tail: tuple[Any, ...] = (other_scale, other_zero_point, "sum", 1.0, then, [], "")
        sums = other.to(written).contiguous(memory_format=torch.channels_last)
        y = torch.ops.onednn.qconv2d_pointwise.binary(*head, sums, *shape, *result, *tail)
    if relu and dims == 3:
        y = y.clamp_(min=out_zero_point if dtype == torch.uint8 else 0)
    return y if written == dtype else y.to(dtype)


def _written(dtype: torch.dtype, dims: int) -> torch.dtype:
    """Return the dtype that a kernel writes for a result: of convolutions over so many axes, or of linear layers for 0."""
    return torch.float32 if _missing_dtype(dtype, dims) else dtype


@cache
def _missing_dtype(dtype: torch.dtype, dims: int) -> str:
    """Return why a kernel writes no such results here; empty where it was run and was right."""
    if dtype in (torch.float32, torch.uint8):
        return ""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the integer kernels write no {dtype}"

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 256, (2, 16, *[3] * dims), dtype=torch.uint8, generator=generator)
        codes = torch.randint(-63, 64, (16, 16, *[1] * dims), dtype=torch.int8, generator=generator)
        scale, none = torch.full((1,), 1e-3), torch.zeros(1, dtype=torch.int32)
        expected = (
            torch.einsum("oi,bi...->bo...", codes.flatten(1).double(), x.double() - 77) * 1e-3
        )
        if not dims:
            y = torch.ops.onednn.qlinear_pointwise(
                x, 1.0, 77, pack_linear(codes), scale, none, None, 1.0, 0, dtype, "none", [], ""
            )
            return y, expected
        one, zero = [1] * dims, [0] * dims
        packed = pack_conv(codes, scale, 1.0, 77, (one, zero, one, 1))
        head = (x, 1.0, 77, packed, scale, none, None, one, zero, one, 1)
        return torch.ops.onednn.qconv_pointwise(*head, 1.0, 0, dtype, "none", [], ""), expected

    return fault(f"results of {dtype}", 0.02, run)


def pack_rows(codes: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    """Lay int8 codes out for :func:`linear_rows`, with scales and bias."""
    with warnings.catch_warnings():
        # torch announces the end of its quantized tensors; while they are there this kernel is the fastest for few rows.
        warnings.simplefilter("ignore")
        scales, zero_points = (
            scale.double().expand(codes.shape[0]).contiguous(),
            torch.zeros(codes.shape[0], dtype=torch.int64),
        )
        weight = torch._make_per_channel_quantized_tensor(codes, scales, zero_points, 0)
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            return torch.ops.quantized.linear_prepack(weight, bias)
        finally:
            torch.backends.quantized.engine = engine


def linear_rows(x: Tensor, packed: Any, scale: float | None = None, zero_point: int = 0) -> Tensor:
    """Quantize float32 ``x`` (asymmetric, per tensor) and multiply, in one call.

    Args:
        x: Values, shape (..., inputs).
        packed: From :func:`pack_rows`.
        scale: Their scale; None takes their own range.
        zero_point: Code of zero, beside a scale.
    """
    y: Tensor
    if scale is not None:
        y = ROWS_STATIC(x, scale, zero_point, packed)
        return y
    try:
        y = ROWS_DYNAMIC(x, packed, False)
    except RuntimeError:
        if bool(x.isfinite().all()):
            raise
        # The kernel finds no range; sums over such numbers are NaN in float.
        outputs = torch.ops.quantized.linear_unpack(packed)[0].shape[0]
        y = x.new_full((*x.shape[:-1], outputs), nan)
    return y


def pack_int4(codes: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Lay codes 0 to 15 (outputs, inputs), int32, out for :func:`linear_int4`, with scales and zeros (outputs, groups)."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return packed, torch.stack([scale, zero], -1).transpose(0, 1).contiguous().to(torch.bfloat16)


def linear_int4(x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
    """Return x W^T in bfloat16 for float ``x`` (rows, inputs) and 4-bit codes, decoded inside the kernel."""
    y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        x.to(torch.bfloat16).contiguous(), packed, group, scales
    )
    return y


def fault(
    kernel: str, share: float, run: Callable[[torch.Generator], tuple[Tensor, Tensor]]
) -> str:
    """Return why a kernel cannot be used here; empty when it ran and was within ``share`` of the largest expected number.

    ``run`` returns (what the kernel gives, the same in float64). A kernel that this build of torch or this processor lacks raises.
    """
    try:
        y, expected = run(torch.Generator().manual_seed(0))
    except (RuntimeError, AttributeError, NotImplementedError, ValueError, TypeError) as error:
        return f"{kernel}: {(str(error) or type(error).__name__).splitlines()[0]}"
    right = bool((y.double() - expected).abs().max() <= share * expected.abs().max())
    return "" if right else f"{kernel}: its result is wrong on this machine"


def _weight(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    # Seven bits: whether whole bytes are summed without saturating is asked by itself, see saturation.py.
    codes = torch.randint(-63, 64, shape, dtype=torch.int8, generator=generator)
    return codes, torch.rand(shape[0], generator=generator) * 1e-3 + 1e-4


@cache
def missing_linear() -> str:
    """Return why the int8 linear kernel cannot be used here; empty when it was run and gave the right numbers."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 256, (5, 64), dtype=torch.uint8, generator=generator)
        w, scale = _weight(generator, 32, 64)
        y = linear_u8(x, 0.02, 77, pack_linear(w), scale, torch.zeros(32, dtype=torch.int32), None)
        return y, (x.double() - 77) * 0.02 @ (w.double() * scale[:, None]).T

    return fault("torch.ops.onednn.qlinear_pointwise", 1e-3, run)


@cache
def missing_int4(device: torch.device) -> str:
    """Return why the 4-bit weight kernel cannot be used on the CPU, the one ``device`` there is here; empty when it was right."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(3, 64, generator=generator)
        codes = torch.randint(0, 16, (32, 64), dtype=torch.int32, generator=generator)
        scale = torch.rand(32, 2, generator=generator) + 0.5
        packed, scales = pack_int4(codes, scale, -scale)
        weight = (codes.double() - 8).view(32, 2, 32) * scale[..., None] - scale[..., None]
        return linear_int4(x, packed, 32, scales), x.double() @ weight.view(32, 64).T

    return fault("torch.ops.aten._weight_int4pack_mm_for_cpu", 0.02, run)


@cache
def missing_rows() -> str:
    """Return why the one-call kernel for few rows cannot be used; empty when it was run and was right."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(3, 64, generator=generator)
        w, scale = _weight(generator, 32, 64)
        packed, expected = pack_rows(w, scale, None), x.double() @ (w.double() * scale[:, None]).T
        return torch.cat([linear_rows(x, packed), linear_rows(x, packed, 0.04, 128)]), torch.cat(
            [expected, expected]
        )

    return fault("torch.ops.quantized.linear_dynamic", 0.02, run)


@cache
def missing_conv(dims: int = 2) -> str:
    """Return why the int8 convolution kernel of that many spatial axes cannot be used; empty when it was run and was right."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 256, (2, 8, *(6,) * dims), dtype=torch.uint8, generator=generator)
        w, scale = _weight(generator, 16, 8, *(3,) * dims)
        one = [1] * dims
        geometry = (one, one, one, 1)
        y = conv_u8(
            x,
            0.02,
            77,
            pack_conv(w, scale, 0.02, 77, geometry),
            scale,
            torch.zeros(16, dtype=torch.int32),
            None,
            geometry,
        )
        convolve = (
            torch.nn.functional.conv1d,
            torch.nn.functional.conv2d,
            torch.nn.functional.conv3d,
        )[dims - 1]
        return y, convolve(
            (x.double() - 77) * 0.02,
            w.double() * scale.double().reshape(-1, *[1] * (dims + 1)),
            None,
            1,
            1,
        )

    return fault("torch.ops.onednn.qconv_pointwise", 1e-3, run)
