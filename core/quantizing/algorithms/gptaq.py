"""GPTAQ: GPTQ that also makes up for what the layers before have done to the inputs."""

from __future__ import annotations

from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .gptq import Gptq, GptqConfig, unit_factor


class GptaqConfig(GptqConfig):
    """Settings of GPTAQ: those of GPTQ, and one more.

    Attributes:
        alpha: How much of the inputs' error is made up for: 1 all of it, as in the paper; 0 nothing
            (GPTQ on the quantized model's inputs). The authors' later code takes 0.25 where little
            calibration data would be fitted too closely.
    """

    kind: Literal["gptaq"] = "gptaq"  # type: ignore[assignment]
    alpha: float = Field(1.0, ge=0, le=1)


class Gptaq(Gptq):
    """Minimises ||W X - W_q X'||^2, X the float model's inputs, X' those that W_q will meet.

    Paper: Li et al. 2025, "GPTAQ: Efficient Finetuning-Free Quantization with Asymmetric
    Calibration", algorithm 1: when column j is rounded, the later columns take its error, as in
    GPTQ on X', and w_j P_j of what its input has lost, with P = alpha triu(C U^T, 1) U,
    C = (X - X')^T X' and (X'^T X')^-1 = U^T U. In the form of GPTQ here, X'^T X' = V D V^T,
    P = alpha triu(C V^-T D^-1, 1) V^-1; see :class:`.sweep.Sweep`.

    Needs both moments. Cost: GPTQ's, two solutions of features^3, and as much again as the sweep's
    corrections.
    """

    config: GptaqConfig

    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize to any dtype, per tensor, channel or group."""
        gram, drift = context.quantized_gram, context.drift
        if gram is None or drift is None:
            raise SchemeError(
                "gptaq needs the inputs of the float and of the quantized model: give calibration "
                "data and a backend that observes both, or use gptq"
            )
        return self.rounded(matrix, spec, context, gram, drift)

    def _factors(self, gram: Array, drift: Array | None) -> tuple[Array, Array | None]:
        unit, energy = unit_factor(gram, self.config.damping)
        assert drift is not None
        xp = array_namespace(gram)
        solved = xp.linalg.solve(unit, xp.matrix_transpose(drift))
        ahead = xp.triu(xp.matrix_transpose(solved) / energy[None, :], k=1)
        turned = xp.linalg.solve(xp.matrix_transpose(unit), xp.matrix_transpose(ahead))
        return unit, self.config.alpha * xp.matrix_transpose(turned)
