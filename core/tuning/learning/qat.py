"""Quantization-aware training and the way back."""

from __future__ import annotations

from typing import Any, Literal

from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.training import Qat
from octavo.core.results.quantized import Quantized

from .lessons import (
    Asked,
    Backend,
    Lesson,
    Scheme,
    in_training,
    learned,
    learning_session,
    lesson_of,
    quantized_model,
)


def prepare_qat(
    model: Any,
    scheme: Scheme | None = None,
    calibration: Any = None,
    *,
    start: Literal["calibration", "lsq"] = "calibration",
    backend: Backend = None,
    host: PluginHost | None = None,
    progress: bool | None = None,
) -> Any:
    """Return a trainable copy of a model whose layers compute with quantized weights and inputs.

    Train it with any loop, then hand it to :func:`octavo.convert`. Weights, biases and step sizes
    learn (LSQ, Esser et al. 2020, "Learned Step Size Quantization", eqs. 1 to 3); layers that the
    scheme leaves in float train too; batch norms are folded in and frozen (Krishnamoorthi 2018,
    section 3.2). Its ``state_dict`` is what a checkpoint holds.

    Args:
        model: What :func:`octavo.quantize_model` returned; or a float model, as for it.
        scheme: For a float model: as for :func:`octavo.quantize_model`; None is ``int8-static``. It
            may be one that only a simulation carries out here, such as ``w2a4-static``: the ledger
            of the converted model says so.
        calibration: For a float model: as for :func:`octavo.quantize_model`.
        start: Where step sizes begin: ``calibration`` at the ranges that calibration found; ``lsq``
            at 2 <|v|> / sqrt(Qp) of the weights, and of the inputs on the first calibration batch
            (section 2.1 of the paper), which is better at 2 and 3 bits.
        backend: For a float model: the backend; None for the model's own.
        host: Plugins.
        progress: As for :func:`octavo.quantize_model`.

    Returns:
        The backend's own trainable object (torch: an ``nn.Module``), in eval mode: call
        ``.train()`` where dropout is wanted. The float model is never changed.

    Raises:
        SchemeError: If the backend trains nothing, or an op or its scheme cannot be trained; the
            message names the op and the remedy.
        ConfigError: If a scheme is given beside what is quantized already, or the float model is
            not known.
    """
    settings = Qat(start)
    asked = Asked(scheme, calibration, backend, host, progress)
    quantized = quantized_model(model, asked, "int8-static", "training")
    session = learning_session(quantized, "training")
    candidate = quantized.candidate
    data = quantized.origin.data if quantized.origin else None
    prepared = session.training().prepare_qat(
        candidate.recipe, candidate.decided(), settings, data or ()
    )
    what = f"trained quantization-aware (LSQ, steps from {start})"
    return in_training(prepared.native, Lesson(quantized, prepared.convert, what))


def convert(module: Any) -> Quantized:
    """Return a trained module on the kernels that its scheme names.

    Args:
        module: What :func:`octavo.prepare_qat` returned, trained; or :func:`octavo.qlora`, whose
            updates are kept over the quantized base, as low-rank repairs of its weights. A copy of
            it, or a wrapper around it (``torch.compile``, data parallel), will do. It may go on
            being trained: the result shares nothing with it that training changes.

    Returns:
        As :func:`octavo.quantize_model` does: with ledger, coverage, ``compare()`` with the float
        model before training, ``save()``.

    Raises:
        ConfigError: If the module was not made by octavo, or came out of a pickle.
    """
    lesson = lesson_of(module)
    return learned(lesson.start, lesson.back(module), lesson.what)
