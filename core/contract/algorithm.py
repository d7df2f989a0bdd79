"""What a weight algorithm and what a rescaling is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from array_api_compat import array_namespace

from octavo.core.calibration.statistics import Statistics
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.channels import Factors
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.graph import ModelView, Op
from octavo.core.values.scheme import QuantSpec

from .parts import PartConfig


@dataclass(frozen=True, slots=True)
class WeightContext:
    """What calibration knows about an op's input, for algorithms whose card ``needs`` it.

    Attributes:
        gram: X^T X over all rows seen, float32, shape (features, features); ``gram``.
        channel_absmax: Largest |x| per input feature, float32, shape (features,); ``channel_range``.
        channel_mean: Mean of each input feature, float32, shape (features,); ``channel_mean``.
        count: Number of rows seen.
        params: The grid that must be used, where one tensor is quantized in parts; else None.
    """

    gram: Array | None = None
    channel_absmax: Array | None = None
    channel_mean: Array | None = None
    count: int = 0
    params: QuantParams | None = None

    def require_gram(self, who: str) -> Array:
        """Return the Gram matrix.

        Raises:
            SchemeError: If there is none.
        """
        if self.gram is None:
            raise SchemeError(
                f"{who} needs the Gram matrix of the op's input: give calibration data, or use rtn or hqq, which need none"
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
        bias_correction: Add (W - W_q) E[x] to the op's bias, so that the mean output stays (Nagel et al. 2019,
            "Data-Free Quantization Through Weight Equalization and Bias Correction", eq. 17).
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
    def quantize(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> QuantizedTensor:
        """Quantize a weight as a matrix.

        Args:
            matrix: float32, shape (output channels, features); a convolution's is flattened.
            spec: ``channel`` means one scale per row; ``group:N`` one per N neighbours in a row.
            context: What calibration saw.

        Returns:
            Codes of the matrix's shape, with ``params.axis`` 0 (None for ``tensor`` granularity).
        """


def corrected_bias(bias: Array, matrix: Array, quantized: QuantizedTensor, mean: Array) -> Array:
    """Return the bias that keeps the mean output: b + (W - W_q) E[x], float32.

    Args:
        bias: float32, shape (channels,).
        matrix: The float weight, shape (channels, features).
        quantized: Its quantized form, of the same shape.
        mean: E[x], shape (features,), or (groups, features) for a grouped convolution; a transposed one's rows hold the features
            of all groups in turn.

    Source: Nagel et al. 2019, eq. 17. One matrix-vector product.
    """
    xp = array_namespace(bias, matrix)
    means = xp.reshape(mean, (-1, mean.shape[-1]))
    groups, features = means.shape
    error = matrix - quantized.dequantize()
    if features == matrix.shape[1]:
        error = xp.reshape(error, (groups, -1, features))
    else:
        error = xp.permute_dims(xp.reshape(error, (-1, groups, features)), (1, 0, 2))
    return bias + xp.reshape(xp.matmul(error, means[:, :, None]), (-1,))


class Rescaling(ABC):
    """Chooses factors for ``Session.rescale``: a function-preserving change of channels."""

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    @property
    def carries(self) -> frozenset[str]:
        """What it changes: of ``scale``, ``shift``, ``rotation``. It leaves out what a group does not take, and the ledger says so."""
        return frozenset({"scale"})

    @abstractmethod
    def factors(
        self,
        view: ModelView,
        tensor: Callable[[str], Array],
        statistics: Statistics,
        recipe_ops: Mapping[str, Op],
    ) -> Mapping[str, Factors]:
        """Return group name -> factors, float32 > 0, shape (channels,), or a channel map; groups that should stay are left out.

        Args:
            view: The model.
            tensor: ``Session.tensor``.
            statistics: Of the session before rescaling.
            recipe_ops: The ops that may be quantized; groups without one need no factors.
        """
