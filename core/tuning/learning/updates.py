"""QLoRA: trainable low-rank updates over a quantized base, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from octavo.core.contract.adapter import Candidate
from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.training import LowRank, Training
from octavo.core.errors import ConfigError
from octavo.core.results.quantized import Quantized
from octavo.core.system.textfiles import absolute

from .lessons import (
    Asked,
    Backend,
    Lesson,
    Scheme,
    in_training,
    learning_session,
    lesson_of,
    quantized_model,
)


def qlora(
    model: Any,
    scheme: Scheme | None = None,
    calibration: Any = None,
    *,
    rank: int = 16,
    alpha: float = 16.0,
    dropout: float = 0.0,
    ops: Iterable[str] | None = None,
    library: str = "auto",
    config: Any = None,
    backend: Backend = None,
    host: PluginHost | None = None,
    progress: bool | None = None,
) -> Any:
    """Return a model with trainable low-rank updates over a frozen base in few bits (QLoRA).

    y = x W_q^T + (alpha / rank) x A^T B^T (Dettmers et al. 2023, "QLoRA: Efficient Finetuning of
    Quantized LLMs", eq. 5); B begins at zero, so training begins at the base. Train it with any
    loop; the base stays as it is.

    Args:
        model: What :func:`octavo.quantize_model` returned; or a float model, as for it.
        scheme: For a float model: as for :func:`octavo.quantize_model`; None is
            ``nf4-weight-only``.
        calibration: For a float model: as for :func:`octavo.quantize_model`.
        rank: Of the updates.
        alpha: Their gain is alpha / rank.
        dropout: Of the updates' inputs while training.
        ops: Names of the ops that get an update, or patterns such as ``*.q_proj``; None for every
            weight-only linear layer.
        library: Whose layers hold the updates. ``peft``: the result is peft's model, which
            transformers' Trainer saves and resumes. ``octavo``: the base's own class, with layers
            of octavo's; no further package is needed. ``auto``: peft where it is installed. Both
            compute the same, and :func:`octavo.save_adapters` writes the same files.
        config: A ``peft.LoraConfig`` in the place of rank, alpha, dropout and ops.
        backend: For a float model: the backend; None for the model's own.
        host: Plugins.
        progress: As for :func:`octavo.quantize_model`.

    Returns:
        The backend's own trainable object (torch: an ``nn.Module``), in which only the updates ask
        for gradients.

    Raises:
        SchemeError: If the backend has no such updates, or no layer takes one.
        ConfigError: If a setting makes no sense.
        MissingFramework: If a library is asked for that is not installed.
    """
    settings = config
    if config is None:
        named = None if ops is None else tuple(ops)
        settings = LowRank(rank, alpha, dropout, named, library)
    asked = Asked(scheme, calibration, backend, host, progress)
    quantized = quantized_model(model, asked, "nf4-weight-only", "low_rank")
    session = learning_session(quantized, "low_rank")
    training = session.training()
    native = training.add_low_rank(quantized.candidate, settings)
    return _with_updates(native, quantized, training)


def save_adapters(module: Any, folder: str | Path) -> Path:
    """Write the updates of a trained module alone, as peft's ``save_pretrained`` does.

    Args:
        module: What :func:`octavo.qlora` or :func:`octavo.load_adapters` returned.
        folder: ``adapter_config.json`` and ``adapter_model.safetensors`` are written there; peft
            reads them over the float model, :func:`octavo.load_adapters` over a quantized one.

    Raises:
        SchemeError: If the module has no updates.
        ConfigError: If it was not made by octavo.
    """
    lesson = lesson_of(module)
    target = absolute(folder, "the folder of adapters")
    learning_session(lesson.start, "low_rank_results").training().save_low_rank(
        module, target
    )
    return target


def load_adapters(
    model: Any,
    folder: str | Path,
    scheme: Scheme | None = None,
    calibration: Any = None,
    *,
    trainable: bool = False,
    backend: Backend = None,
    host: PluginHost | None = None,
    progress: bool | None = None,
) -> Any:
    """Return a quantized model with updates that :func:`octavo.save_adapters` or peft wrote.

    Args:
        model: As for :func:`octavo.qlora`: the base that was trained over.
        folder: The updates.
        scheme: As for :func:`octavo.qlora`.
        calibration: As for :func:`octavo.qlora`.
        trainable: Whether the updates go on learning.
        backend: As for :func:`octavo.qlora`.
        host: Plugins.
        progress: As for :func:`octavo.quantize_model`.

    Raises:
        ConfigError: If the folder holds no updates that can be read.
        SchemeError: As for :func:`octavo.qlora`.
    """
    source = absolute(folder, "the folder of adapters")
    if not source.is_dir():
        raise ConfigError(f"{source} does not exist: give the folder of the adapters")
    asked = Asked(scheme, calibration, backend, host, progress)
    quantized = quantized_model(model, asked, "nf4-weight-only", "low_rank")
    training = learning_session(quantized, "low_rank").training()
    native = training.load_low_rank(quantized.candidate, source, is_trainable=trainable)
    return _with_updates(native, quantized, training)


def merge_adapters(
    module: Any, base: Literal["quantized", "float"] = "quantized"
) -> Any:
    """Return a float model with the updates added to its weights: W + (alpha / rank) B A.

    It is an ordinary model: save it by its own means, or quantize it again.

    Args:
        module: What :func:`octavo.qlora` or :func:`octavo.load_adapters` returned.
        base: ``quantized`` adds to the numbers that the base's codes stand for, so that the model
            computes what was trained; ``float`` adds to the weights of the float model that the
            base was made from, over which the updates were not trained.

    Returns:
        A module of the float model's class, in eval mode; nothing of it asks for gradients.

    Raises:
        SchemeError: If a weight cannot take an update.
        ConfigError: If the module was not made by octavo, or there is no such base.
    """
    if base not in ("quantized", "float"):
        raise ConfigError(f"base is 'quantized' or 'float', not {base!r}")
    start = lesson_of(module).start
    training = learning_session(start, "low_rank_results").training()
    return training.merge_low_rank(start.candidate, module, base)


def _with_updates(native: Any, base: Quantized, training: Training) -> Any:
    """Return a model with updates that knows its base."""

    def kept(trained: Any) -> Candidate:
        return training.keep_low_rank(base.candidate, trained)

    return in_training(native, Lesson(base, kept, "low-rank updates beside the base"))
