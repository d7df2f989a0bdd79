"""How far the outputs of two models lie apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class OutputDifference:
    """How one output of the quantized model differs from the float model's.

    Attributes:
        name: The output's name.
        sqnr: Signal to quantization noise in decibels: 20 is a tenth of the signal, infinity is no
            difference. None of outputs that are no floats.
        cosine: Cosine of the angle between all values of both; None of outputs that are no floats.
        largest: The largest difference of one value.
        range: The largest absolute value in float: what ``largest`` is to be seen beside.
        equal: Share of the values that are equal.
    """

    name: str
    sqnr: float | None
    cosine: float | None
    largest: float
    range: float
    equal: float


class Sums:
    """Sums over the values of one output, batch after batch."""

    def __init__(self) -> None:
        self.count = 0
        self.equal = 0
        self.signal = 0.0
        self.noise = 0.0
        self.product = 0.0
        self.own = 0.0
        self.largest = 0.0
        self.range = 0.0
        self.is_float = True

    def add(self, quantized: np.ndarray, reference: np.ndarray) -> None:
        """Add a batch of an output.

        Outputs whose length follows from their values (found boxes) are compared as far as both
        go.
        """
        quantized, reference = _flat(quantized), _flat(reference)
        self.is_float &= reference.dtype.kind in _FLOATING
        length = min(quantized.size, reference.size)
        q, f = quantized[:length], reference[:length]
        self.count += max(quantized.size, reference.size)
        self.equal += int(np.count_nonzero(q == f))
        if not _is_number(q) or not _is_number(f):
            # Labels as texts are equal or not: nothing lies between.
            return
        q, f = q.astype(np.float64), f.astype(np.float64)
        if np.any(np.isfinite(f) & ~np.isfinite(q)):
            self.noise = self.largest = math.inf
        # A mask's minus infinity is no signal.
        finite = np.isfinite(q) & np.isfinite(f)
        q, f = q[finite], f[finite]
        if not len(f):
            return
        difference = q - f
        self.signal += float(f @ f)
        self.noise += float(difference @ difference)
        self.product += float(q @ f)
        self.own += float(q @ q)
        self.largest = max(self.largest, float(np.abs(difference).max()))
        self.range = max(self.range, float(np.abs(f).max()))

    def told(self, name: str) -> OutputDifference:
        """Return what the sums say."""
        equal = self.equal / self.count if self.count else 1.0
        if not self.is_float:
            return OutputDifference(name, None, None, self.largest, self.range, equal)
        lengths = math.sqrt(self.signal) * math.sqrt(self.own)
        cosine = min(1.0, self.product / lengths) if lengths else None
        if self.noise == 0:
            cosine = 1.0
        elif self.noise == math.inf:
            cosine = None
        return OutputDifference(
            name, self._sqnr(), cosine, self.largest, self.range, equal
        )

    def _sqnr(self) -> float:
        if self.noise == 0:
            return math.inf
        if self.signal == 0 or self.noise == math.inf:
            return -math.inf
        return 10 * math.log10(self.signal / self.noise)


def output_row(output: OutputDifference, of: int) -> tuple[str, str, str, str]:
    """Return an output's row of a table.

    Args:
        output: The output.
        of: How many outputs the model has.
    """
    name = "outputs" if of == 1 else f"output {output.name}"
    reach = f"up to {output.range:.3g}"
    off = f"off by {output.largest:.3g} at the most"
    if output.sqnr is None or output.cosine is None:
        return name, reach, off, f"{output.equal:.4g} of the values equal"
    if output.sqnr == math.inf:
        return name, reach, "no difference", "-"
    cosine = _cosine(output.cosine)
    return name, reach, off, f"SQNR {output.sqnr:.1f} dB, cosine {cosine}"


def _cosine(value: float) -> str:
    """Return a cosine with the digits by which it differs from 1."""
    return f"{value:.6f}" if value > 0.999 else f"{value:.4f}"


def output_json(output: OutputDifference) -> dict[str, Any]:
    """Return an output's figures, JSON-ready."""
    return {
        "name": output.name,
        "sqnr_db": output.sqnr,
        "cosine": output.cosine,
        "largest_difference": output.largest,
        "float_range": output.range,
        "equal": output.equal,
    }


def _flat(values: np.ndarray) -> np.ndarray:
    """Return all values in one axis; complex ones as their two parts."""
    if np.iscomplexobj(values):
        values = np.stack([values.real, values.imag])
    return values.reshape(-1)


_FLOATING = "fV"
"""Kinds of floating types; of NumPy's own and of those that it does not have (bfloat16)."""


def _is_number(values: np.ndarray) -> bool:
    return values.dtype.kind in f"biu{_FLOATING}"
