"""Distillation of a quantized model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from octavo.core.contract.training import Distillation
from octavo.core.errors import ConfigError, nearest
from octavo.core.results.quantized import Quantized

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
        ConfigError: If a setting is unknown, or the float model is not known.
    """
    _check_is_quantized(quantized)
    chosen = _settings(Distillation, settings)
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


def _settings(kind: type[Distillation], given: Mapping[str, Any]) -> Distillation:
    known = [f.name for f in fields(kind)]
    for name in given:
        if name not in known:
            raise ConfigError(f"there is no setting {name!r}{nearest(name, known)}")
    return kind(**given)
