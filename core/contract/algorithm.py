"""What a weight algorithm and what a rescaling is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .parts import PartConfig
from .transform import Rescaling as Rescaling  # where plugins have always found it


@dataclass(frozen=True, slots=True)
class WeightContext:
    """What calibration knows about an op's input, for algorithms whose card ``needs`` it.

    Attributes:
        gram: X^T X over all rows seen, float32, shape (features, features); ``gram``.
        channel_absmax: Largest |x| per input feature, float32, shape (features,);
            ``channel_range``.
        channel_mean: Mean of each input feature, float32, shape (features,); ``channel_mean``.
        channel_square: Mean square of each input feature, float32, shape (features,);
            ``channel_square``.
        gradient_square: Mean square of the loss's gradient at each weight, float32, of the
            matrix's shape; ``gradient_square``.
        quantized_gram: X'^T X' over the inputs X' that the model gives whose earlier weights are
            quantized, float32, shape (features, features); ``paired_gram``.
        drift: (X - X')^T X', X the float model's inputs, likewise; ``paired_gram``.
        count: Number of rows seen.
        params: The grid that must be used, where one tensor is quantized in parts; else None.
        start: What the algorithm before this one in a chain made of the same matrix, for those
            whose card ``refines``: its grid, its codes. None for the first.
    """

    gram: Array | None = None
    channel_absmax: Array | None = None
    channel_mean: Array | None = None
    count: int = 0
    params: QuantParams | None = None
    start: QuantizedTensor | None = None
    channel_square: Array | None = None
    gradient_square: Array | None = None
    quantized_gram: Array | None = None
    drift: Array | None = None

    def require_gram(self, who: str) -> Array:
        """Return the Gram matrix.

        Raises:
            SchemeError: If there is none.
        """
        if self.gram is None:
            raise SchemeError(
                f"{who} needs the Gram matrix of the op's input: give calibration data, or use "
                "rtn or hqq, which need none"
            )
        return self.gram


class NeedsConfig(PartConfig):
    """Base of settings that change what a part needs of calibration."""

    def needs(self, card: frozenset[str]) -> frozenset[str]:
        """Return what is needed under these settings, given what the card states."""
        return card


class WeightConfig(NeedsConfig):
    """Base of the settings of the built-in weight algorithms.

    Attributes:
        bias_correction: Add (W - W_q) E[x] to the op's bias, so that the mean output stays (Nagel
            et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
            eq. 17).
    """

    bias_correction: bool = False

    def needs(self, card: frozenset[str]) -> frozenset[str]:
        """Bias correction needs the inputs' means."""
        return card | {"channel_mean"} if self.bias_correction else card


class WeightAlgorithm(ABC):
    """Rounds a weight matrix. Built from its card's config; holds no state between calls."""

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    @abstractmethod
    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize a weight as a matrix.

        Args:
            matrix: float32, shape (output channels, features); a convolution's is flattened.
            spec: ``channel`` means one scale per row; ``group:N`` one per N neighbours in a row.
            context: What calibration saw.

        Returns:
            Codes of the matrix's shape, with ``params.axis`` 0 (None for ``tensor`` granularity).
        """
