"""What a batch norm said of its output, kept where it is folded into the op before it.

The folded weight holds the norm's gain times everything else; how the output is spread can no
longer be read off it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx_ir import Node

_NORM = "octavo.batch_norm"


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """The output of a batch norm: each channel has this mean and this standard deviation.

    Attributes:
        gain: float64, shape (channels,).
        shift: Likewise.
    """

    gain: np.ndarray
    shift: np.ndarray

    def then(self, factor: np.ndarray, shift: np.ndarray) -> FoldedNorm:
        """Return what it is after ``factor * x + shift``."""
        return FoldedNorm(self.gain * factor, self.shift * factor + shift)

    def beside(self, other: FoldedNorm) -> FoldedNorm:
        """Return what the sum of two outputs is, as if they were independent."""
        gain = np.hypot(self.gain, other.gain)
        return FoldedNorm(gain, self.shift + other.shift)


def folded_norm(node: Node) -> FoldedNorm | None:
    """Return the batch norm that was folded into a node; None if none was."""
    found: FoldedNorm | None = node.meta.get(_NORM)
    return found


def keep_folded_norm(node: Node, norm: FoldedNorm) -> None:
    """Note which batch norm is folded into a node."""
    node.meta[_NORM] = norm
