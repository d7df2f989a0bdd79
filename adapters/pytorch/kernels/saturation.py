"""Whether this processor's 8-bit products saturate, and what then keeps layers right.

x86 processors before VNNI multiply bytes with ``vpmaddubsw``: two neighbouring products, of an unsigned and a
signed byte each, are added in 16 bits *with saturation*. 255 * 127 * 2 = 64770 does not fit in 32767, so whole
int8 weights give wrong sums. Weights of seven bits do fit: 255 * 63 * 2 = 32130. So does every product of
narrower weights, and a processor with VNNI, which adds four products in 32 bits, takes both.
(Intel, "Lower Numerical Precision Deep Learning Inference and Training", 2018, section on vpmaddubsw.)
"""

from __future__ import annotations

from functools import cache

import torch

from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.saturation import REACH, REASON

from . import fbgemm, onednn
from .windows import Geometry

Tensor = torch.Tensor


FLOAT_INSTEAD = (
    "its weight uses all 8 bits, whose products this CPU adds in 16 bits (no VNNI): computed in float32 on the same "
    "codes; quantize the model on this machine for its integer kernels"
)
LONG = "sums over its rows may need more than 32 bits: computed in float32 on the same codes"
_LARGEST_SUM = (2**31 - 1) // 255
"""Of the magnitudes of one output's codes, each of which an input of 255 may meet."""


@cache
def saturates() -> str:
    """Return why weights must keep to seven bits on this CPU; empty where the kernels sum whole int8 weights."""
    kernels_of_both_kinds = (_linear_is_right, _rows_are_right, _conv_is_right)
    right = all(is_right() for is_right in kernels_of_both_kinds)
    return "" if right else REASON


def in_reach(codes: Tensor) -> bool:
    """Return whether the kernels of this machine multiply these weight codes without saturating."""
    if codes.numel() == 0 or not saturates():
        return True
    # int8 has no magnitude of -128, so both ends are looked at.
    signed = codes.view(torch.int8)
    return int(signed.amin()) >= -REACH and int(signed.amax()) <= REACH


def sums_fit(codes: Tensor, axis: int) -> bool:
    """Return whether no sum of a matrix's products needs more than 32 bits: those of long rows may, on any machine.

    Args:
        codes: Codes of a weight with two axes.
        axis: That of its outputs.
    """
    summed = codes.shape[1 - axis]
    if summed * 127 <= _LARGEST_SUM:
        return True
    magnitudes = codes.view(torch.int8).abs().sum(1 - axis, dtype=torch.int64)
    return int(magnitudes.amax()) <= _LARGEST_SUM


def missing_reach(decided: OpParameters, axis: int) -> str:
    """Return that an op's integer products would saturate here, so that it computes in float32; empty otherwise.

    Only codes that were made on another machine do: here they are made in reach. Sums of very long rows do on all machines.

    Args:
        decided: The op's weights and scheme.
        axis: That of a weight's outputs.
    """
    scheme = decided.scheme
    on_bytes = (
        scheme.mode in ("static", "dynamic")
        and scheme.input is not None
        and scheme.input.dtype in ("int8", "uint8")
    )
    weights = (decided.weight, *decided.further) if on_bytes else ()
    codes = [
        w.codes for w in weights if w is not None and w.codes.dtype in (torch.int8, torch.uint8)
    ]
    if not all(map(in_reach, codes)):
        return FLOAT_INSTEAD
    return "" if all(sums_fit(c, axis) for c in codes if c.ndim == 2) else LONG


_SHAPE = (
    4,
    64,
)  # more than a vector of bytes long, so that the vectorized kernel runs and not its remainder


def _extremes() -> tuple[Tensor, Tensor]:
    """Return the codes whose products are largest: all 255 in the input, all 127 in the weight."""
    x = torch.full(_SHAPE, 255, dtype=torch.uint8)
    w = torch.full((32, _SHAPE[1]), 127, dtype=torch.int8)
    return x, w


def _agrees(y: Tensor, expected: float) -> bool:
    return bool(((y - expected).abs() <= 0.01 * expected).all())


def _linear_is_right() -> bool:
    if onednn.missing_linear():
        return True  # nothing is run on it
    x, w = _extremes()
    one, none = torch.ones(len(w)), torch.zeros(len(w), dtype=torch.int32)
    y = onednn.linear_u8(x, 1.0, 0, onednn.pack_linear(w), one, none, None)
    return _agrees(y, 255.0 * 127 * _SHAPE[1])


def _rows_are_right() -> bool:
    if fbgemm.missing_rows():
        return True
    x, w = _extremes()
    packed = fbgemm.pack_rows(w, torch.ones(len(w)), None)
    y = fbgemm.linear_rows(x.float(), packed, 1.0, 0)
    return _agrees(y, 255.0 * 127 * _SHAPE[1])


def _conv_is_right() -> bool:
    if onednn.missing_conv():
        return True
    x = torch.full((1, _SHAPE[1], 4, 4), 255, dtype=torch.uint8)
    w = torch.full((32, _SHAPE[1], 1, 1), 127, dtype=torch.int8)
    one, none = torch.ones(len(w)), torch.zeros(len(w), dtype=torch.int32)
    plain: Geometry = ([1, 1], [0, 0], [1, 1], 1)
    packed = onednn.pack_conv(w, one, 1.0, 0, plain)
    x = x.contiguous(memory_format=torch.channels_last)
    y = onednn.conv_u8(x, 1.0, 0, packed, one, none, None, plain)
    return _agrees(y, 255.0 * 127 * _SHAPE[1])
