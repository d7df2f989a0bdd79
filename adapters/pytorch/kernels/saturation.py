"""Whether this processor's 8-bit products saturate, and what then keeps layers right.

x86 processors before VNNI multiply bytes with ``vpmaddubsw``: two neighbouring products, of an
unsigned and a signed byte each, are added in 16 bits *with saturation*. 255 * 127 * 2 = 64770 does
not fit in 32767, so whole int8 weights give wrong sums. Weights of seven bits do fit:
255 * 63 * 2 = 32130. So does every product of narrower weights, and a processor with VNNI, which
adds four products in 32 bits, takes both. (Intel, "Lower Numerical Precision Deep Learning
Inference and Training", 2018, section on vpmaddubsw.)
"""

from __future__ import annotations

from functools import cache

import torch

from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.saturation import REACH, REASON

from . import fbgemm, onednn
from .windows import unit_geometry

Tensor = torch.Tensor


FLOAT_INSTEAD = (
    "its weight uses all 8 bits, whose products this CPU adds in 16 bits (no VNNI): computed in "
    "float32 on the same codes; quantize the model on this machine for its integer kernels"
)
LONG = "sums over its rows may need more than 32 bits: computed in float32 on the same codes"
_LARGEST_SUM = (2**31 - 1) // 255
"""Of the magnitudes of one output's codes, each of which an input of 255 may meet."""


@cache
def saturates() -> str:
    """Return why weights must keep to seven bits on this CPU.

    Empty where the kernels sum whole int8 weights.
    """
    kernels_of_all_kinds = (_linear_is_right, _rows_are_right, _conv_is_right)
    right = all(is_right() for is_right in kernels_of_all_kinds)
    return "" if right else REASON


def in_reach(codes: Tensor) -> bool:
    """Return whether the kernels of this machine multiply these weight codes without saturating."""
    if codes.numel() == 0 or not saturates():
        return True
    # int8 has no magnitude of -128, so both ends are looked at.
    signed = codes.view(torch.int8)
    lowest, highest = int(signed.amin()), int(signed.amax())
    return lowest >= -REACH and highest <= REACH


def sums_fit(codes: Tensor, axis: int) -> bool:
    """Return whether no sum of a matrix's products needs more than 32 bits.

    Those of long rows may, on any machine.

    Args:
        codes: Codes of a weight with two axes.
        axis: That of its outputs.
    """
    summed = codes.shape[1 - axis]
    # Most layers are short enough for any codes, which then need not be read.
    if summed * 127 <= _LARGEST_SUM:
        return True
    magnitudes = codes.view(torch.int8).abs().sum(1 - axis, dtype=torch.int64)
    return int(magnitudes.amax()) <= _LARGEST_SUM


def why_in_float(decided: OpParameters, axis: int) -> str:
    """Return why an op's integer products would saturate here, so that it computes in float32.

    Empty where they do not. Only codes that were made on another machine do: here they are made in
    reach. Sums of very long rows do on all machines.

    Args:
        decided: The op's weights and scheme.
        axis: That of a weight's outputs.
    """
    codes = _byte_codes(decided)
    if not all(in_reach(c) for c in codes):
        return FLOAT_INSTEAD
    matrices = [c for c in codes if c.ndim == 2]
    return "" if all(sums_fit(c, axis) for c in matrices) else LONG


def _byte_codes(decided: OpParameters) -> list[Tensor]:
    """Return the codes of the op's weights that are multiplied by bytes, as bytes."""
    scheme = decided.scheme
    if scheme.mode not in ("static", "dynamic") or scheme.input is None:
        return []
    if scheme.input.dtype not in ("int8", "uint8"):
        return []
    weights = (decided.weight, *decided.further)
    codes = [w.codes for w in weights if w is not None]
    return [c for c in codes if c.dtype in (torch.int8, torch.uint8)]


_SHAPE = (4, 64)
"""More than a vector of bytes long, so that the vectorized kernel runs and not its remainder."""
_OUTPUTS = 32
_EXACT_SUM = 255.0 * 127 * _SHAPE[1]


def _extreme_inputs(*shape: int) -> Tensor:
    return torch.full(shape, 255, dtype=torch.uint8)


def _extreme_weight(*shape: int) -> Tensor:
    return torch.full(shape, 127, dtype=torch.int8)


def _is_exact(y: Tensor) -> bool:
    # A saturated sum is about half of the exact one.
    error = (y - _EXACT_SUM).abs()
    return bool((error <= 0.01 * _EXACT_SUM).all())


def _linear_is_right() -> bool:
    if onednn.missing_linear():
        return True  # nothing is run on it
    packed = onednn.pack_linear(_extreme_weight(_OUTPUTS, _SHAPE[1]))
    one = torch.ones(_OUTPUTS)
    none = torch.zeros(_OUTPUTS, dtype=torch.int32)
    return _is_exact(
        onednn.linear_u8(_extreme_inputs(*_SHAPE), 1.0, 0, packed, one, none, None)
    )


def _rows_are_right() -> bool:
    if fbgemm.missing_rows():
        return True
    packed = fbgemm.pack_rows(
        _extreme_weight(_OUTPUTS, _SHAPE[1]), torch.ones(_OUTPUTS), None
    )
    return _is_exact(
        fbgemm.linear_rows(_extreme_inputs(*_SHAPE).float(), packed, 1.0, 0)
    )


def _conv_is_right() -> bool:
    if onednn.missing_conv():
        return True
    x = _extreme_inputs(1, _SHAPE[1], 4, 4).contiguous(
        memory_format=torch.channels_last
    )
    one = torch.ones(_OUTPUTS)
    none = torch.zeros(_OUTPUTS, dtype=torch.int32)
    plain = unit_geometry(2)
    packed = onednn.pack_conv(
        _extreme_weight(_OUTPUTS, _SHAPE[1], 1, 1), one, 1.0, 0, plain
    )
    return _is_exact(onednn.conv_u8(x, 1.0, 0, packed, one, none, None, plain))
