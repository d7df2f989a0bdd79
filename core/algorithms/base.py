"""What a weight algorithm and what a rescaling is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..graph import ModelView, Op
from ..numerics.affine import Array
from ..numerics.tensor import QuantizedTensor
from ..parts import PartConfig
from ..scheme import QuantSpec
from ..statistics import Statistics


@dataclass(frozen=True, slots=True)
class WeightContext:
    """What calibration knows about an op's input, for algorithms whose card ``needs`` it.

    Attributes:
        gram: X^T X over all rows seen, float32, shape (features, features); ``gram``.
        channel_absmax: Largest |x| per input feature, float32, shape (features,); ``channel_range``.
    """

    gram: Array | None = None
    channel_absmax: Array | None = None


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


class Rescaling(ABC):
    """Chooses factors for ``Session.rescale``: a function-preserving change of channel scales."""

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    @abstractmethod
    def factors(
        self, view: ModelView, tensor: Callable[[str], Array], statistics: Statistics, recipe_ops: Mapping[str, Op]
    ) -> Mapping[str, Array]:
        """Return group name -> factors, float32 > 0, shape (channels,); groups that should stay are left out.

        Args:
            view: The model.
            tensor: ``Session.tensor``.
            statistics: Of the session before rescaling.
            recipe_ops: The ops that will be quantized; groups without one need no factors.
        """
