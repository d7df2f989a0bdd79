"""Distillation of a quantized model."""

from __future__ import annotations

from typing import Any

from octavo.core.contract.recovery import DISTILLATION, recovery_settings
from octavo.core.errors import ConfigError
from octavo.core.results.quantized import Quantized
from octavo.core.values.scheme import PartChoice

from .lessons import learned, learning_session


def distill(
    quantized: Quantized, teacher: Any = None, data: Any = None, **settings: Any
) -> Quantized:
    """Return the model with scales and rounding learned from a teacher's predictions.

    All integer weight-only linear layers learn together (Chen et al. 2024, "EfficientQAT",
    end-to-end training of quantization parameters). One batch in four, at least one, is held
    back and judges: where it says that the start was better, that is kept.

    Args:
        quantized: What :func:`octavo.quantize_model` returned; not changed.
        teacher: A model of the backend that takes the same inputs and whose first output are logits
            of the same classes; None for the float model that it was made from.
        data: Batches, as for calibration; None takes those that calibrated.
        **settings: ``steps``, ``rate``, ... of
            :class:`octavo.core.contract.training.Distillation`.

    Raises:
        SchemeError: If the backend does not distill, or no layer can be learned so.
        DataError: If there are no data.
        ConfigError: If a setting is unknown or malformed, or the float model is not known.
    """
    _check_is_quantized(quantized)
    step = PartChoice(kind=DISTILLATION, options=tuple(sorted(settings.items())))
    chosen: Any = recovery_settings(step)
    session = learning_session(quantized, "distillation")
    assert quantized.origin is not None
    batches = quantized.origin.read(data)
    candidate = quantized.candidate
    if isinstance(teacher, Quantized):
        teacher = teacher.model
    parameters = session.training().distill(
        candidate.decided(), batches, chosen, teacher=teacher
    )
    made = session.apply(candidate.recipe, parameters)
    return learned(quantized, made, "distilled from its teacher's predictions")


def _check_is_quantized(quantized: Any) -> None:
    if not isinstance(quantized, Quantized):
        raise ConfigError(
            f"distill takes what quantize_model returns, not a {type(quantized).__name__}: "
            "quantize the model first, distill(quantize_model(model, scheme, data), teacher)"
        )
