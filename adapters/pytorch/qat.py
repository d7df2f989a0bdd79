"""Quantization-aware training by the name that earlier documentation gave it.

New code asks the session: ``session.training().prepare_qat(recipe, parameters)``.
"""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.contract.adapter import OpParameters
from octavo.core.values.recipe import Recipe

from .session import TorchSession
from .training.qat import TorchQatModel


class QuantizationAwareTraining(TorchQatModel):
    """A trainable copy of a session's model under a recipe, and the way back to kernels.

    Args:
        session: The float model; not changed.
        recipe: What to quantize.
        parameters: From calibration: ``Realizer.parameters(recipe)``.

    Raises:
        SchemeError: If a scheme is not integer, or a layer cannot be trained.
    """

    def __init__(
        self,
        session: TorchSession,
        recipe: Recipe,
        parameters: Mapping[str, OpParameters],
    ) -> None:
        super().__init__(session.capture, recipe, parameters, session.over)
