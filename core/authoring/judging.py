"""An answer of one op, held against what rounding gives in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from octavo.core.contract.candidate import OpParameters
from octavo.core.values.graph import Op

from .reference import forward, rounded, rounded_forward

Tail = Callable[[np.ndarray], np.ndarray]
"""What a runtime does to an op's result before it puts it out."""

_SAME = 1e-3
"""Share of a float result by which float64 may differ from it."""
_AGREES = 0.25
"""Share of the error of rounding by which an answer may differ from the rounded one: a value on a
tie goes the other way in float32, a bias in 32 bits has a step of its own. A zero point that is
left out, or a scale of a neighbour, is off by many times of it."""
_FLOAT32 = 1e-5
"""Share of a result by which sums in float32 may differ."""


def _plain(y: np.ndarray) -> np.ndarray:
    return y


def _relu(y: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(y, 0))


def _channels_last(y: np.ndarray) -> np.ndarray:
    return np.moveaxis(y, 1, -1) if y.ndim > 2 else y


def _relu_channels_last(y: np.ndarray) -> np.ndarray:
    return _channels_last(_relu(y))


_TAILS: tuple[Tail, ...] = (_plain, _relu, _channels_last, _relu_channels_last)


@dataclass(frozen=True)
class Judge:
    """An op whose float answer NumPy gives too.

    Attributes:
        op: The op.
        inputs: What it reads, float64.
        bias: The model's own, or None.
        exact: Its float answer in NumPy, before the tail.
        tail: What the runtime does behind it.
    """

    op: Op
    inputs: Sequence[np.ndarray]
    bias: np.ndarray | None
    exact: np.ndarray
    tail: Tail

    @classmethod
    def of(
        cls,
        op: Op,
        inputs: Sequence[np.ndarray],
        weight: np.ndarray | None,
        bias: np.ndarray | None,
        answer: np.ndarray,
    ) -> Judge | None:
        """Return the judge of an op; None where NumPy does not find the runtime's float answer.

        Args:
            op: The op.
            inputs: What it reads, float64.
            weight: Likewise, in the shape that the op states.
            bias: Likewise.
            answer: What the runtime gives in float.
        """
        exact = forward(op, inputs, weight, bias)
        if exact is None:
            return None
        for tail in _TAILS:
            found = tail(exact)
            is_alike = found.shape == answer.shape
            if is_alike and _rms(found - answer) <= _SAME * _rms(answer):
                return cls(op, inputs, bias, exact, tail)
        return None

    def off(self, answer: np.ndarray, decided: OpParameters) -> str:
        """Return how far an answer is from the rounded one, in words; empty where it agrees.

        Nothing is said of schemes that NumPy does not know here.

        Args:
            answer: What the runtime gives with these decisions.
            decided: What was decided for the op.
        """
        wanted = rounded_forward(self.op, self.inputs, decided, self.bias)
        if wanted is None or decided.scheme.mode == "cast":
            return ""
        wanted = self.tail(wanted)
        grid = decided.outputs[0] if decided.outputs else None
        if grid is not None:
            wanted = rounded(wanted, grid)
        exact = self.tail(self.exact)
        rounding = _rms(wanted - exact)
        off = _rms(answer - wanted)
        if off <= _AGREES * rounding + _FLOAT32 * _rms(exact):
            return ""
        return (
            f"its answer is {off:.2g} from what rounding gives in NumPy, "
            f"which itself is {rounding:.2g} from float"
        )


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
