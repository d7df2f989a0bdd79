"""Training by an ordinary loop: quantization-aware, on low-rank updates, and by distillation.

Each function takes what :func:`octavo.quantize_model` returns, or a model and a scheme, which is
quantized first. So what is trained is what a recipe says, by one path. What learns is the
backend's, behind :meth:`Session.training`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from octavo.core.contract.adapter import Candidate, Session
from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.training import Distillation, LowRank, Qat
from octavo.core.errors import ConfigError, SchemeError, nearest
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import find_adapter, plugin_host
from octavo.core.results.quantized import Quantized
from octavo.core.values.recipe import Recipe

from .quantize import quantize_model

Scheme = str | Path | Recipe | TuningConfig | Mapping[str, Any]
Backend = str | Mapping[str, Any] | None
_REMEDIES: Mapping[str, str] = {
    "training": "train the float model, then quantize it again; the torch backend trains",
    "low_rank": "the torch backend has low-rank updates",
    "distillation": "an algorithm such as gptq or autoround learns layer by layer; the torch "
    "backend distills",
}
"""Feature -> what to do where a backend lacks it."""
_LESSON = "_octavo_lesson"
"""Attribute of a module in training that holds what :func:`convert` needs."""


class Lesson:
    """What a module in training was made from, and the way back.

    It stays one object in copies of the module, and is left behind when the module is pickled:
    a ``state_dict`` is what training saves.

    Args:
        start: What was quantized.
        back: Returns the candidate of a trained module.
        what: What was done, for the notes of the result.
    """

    def __init__(
        self, start: Quantized, back: Callable[[Any], Candidate], what: str
    ) -> None:
        self.start = start
        self.back = back
        self.what = what

    def __deepcopy__(self, memo: dict[int, Any]) -> Lesson:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


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
        scheme: For a float model: as for :func:`octavo.quantize_model`; None is ``int8-static``.
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
    quantized = _quantized(model, asked, "int8-static", "training")
    session = _session(quantized, "training")
    candidate = quantized.candidate
    data = quantized.origin.data if quantized.origin else None
    prepared = session.training().prepare_qat(
        candidate.recipe, candidate.decided(), settings, data or ()
    )
    what = f"trained quantization-aware (LSQ, steps from {start})"
    return _in_training(prepared.native, Lesson(quantized, prepared.convert, what))


def qlora(
    model: Any,
    scheme: Scheme | None = None,
    calibration: Any = None,
    *,
    rank: int = 16,
    alpha: float = 16.0,
    dropout: float = 0.0,
    ops: Iterable[str] | None = None,
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
        config: A library's own settings in the place of rank, alpha, dropout and ops: a
            ``peft.LoraConfig``, and the result is peft's model, which transformers' Trainer takes
            and whose ``save_pretrained`` writes the adapters.
        backend: For a float model: the backend; None for the model's own.
        host: Plugins.
        progress: As for :func:`octavo.quantize_model`.

    Returns:
        The backend's own trainable object (torch: an ``nn.Module``), in which only the updates ask
        for gradients.

    Raises:
        SchemeError: If the backend has no such updates, or no layer takes one.
        ConfigError: If a setting makes no sense.
        MissingFramework: If ``config`` belongs to a library that is not installed.
    """
    settings = config
    if config is None:
        named = None if ops is None else tuple(ops)
        settings = LowRank(rank, alpha, dropout, named)
    asked = Asked(scheme, calibration, backend, host, progress)
    quantized = _quantized(model, asked, "nf4-weight-only", "low_rank")
    session = _session(quantized, "low_rank")
    return session.training().add_low_rank(quantized.candidate, settings)


def distill(
    quantized: Quantized, teacher: Any = None, data: Any = None, **settings: Any
) -> Quantized:
    """Return the model with scales and rounding learned from a teacher's predictions.

    All integer weight-only linear layers learn together (Chen et al. 2024, "EfficientQAT",
    end-to-end training of quantization parameters). Where all data together say that the start was
    better, it is kept.

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
    session = _session(quantized, "distillation")
    assert quantized.origin is not None
    batches = quantized.origin.read(data)
    candidate = quantized.candidate
    if isinstance(teacher, Quantized):
        teacher = teacher.model
    learned = session.training().distill(
        candidate.decided(), batches, chosen, teacher=teacher
    )
    made = session.apply(candidate.recipe, learned)
    return _learned(quantized, made, "distilled from its teacher's predictions")


def convert(module: Any) -> Quantized:
    """Return a trained module on the kernels that its scheme names.

    Args:
        module: What :func:`octavo.prepare_qat` returned, trained; a copy of it, or a
            wrapper around it (``torch.compile``, data parallel), will do. It may go on being
            trained: the result shares nothing with it that training changes.

    Returns:
        As :func:`octavo.quantize_model` does: with ledger, coverage, ``compare()`` with the float
        model before training, ``save()``.

    Raises:
        ConfigError: If the module was not made by octavo, or came out of a pickle.
    """
    lesson = _lesson_of(module)
    return _learned(lesson.start, lesson.back(module), lesson.what)


@dataclass(frozen=True)
class Asked:
    """How a float model is to be quantized: what :func:`octavo.quantize_model` takes."""

    scheme: Scheme | None
    calibration: Any
    backend: Backend
    host: PluginHost | None
    progress: bool | None


def _quantized(model: Any, asked: Asked, default: str, feature: str) -> Quantized:
    """Return a model quantized, where it is not yet."""
    if isinstance(model, Quantized):
        if asked.scheme is not None or asked.calibration is not None:
            raise ConfigError(
                f"a {type(model).__name__} is quantized already, and keeps its scheme and its "
                "calibration data: leave scheme and calibration out, or give the float model"
            )
        return model
    _refuse_backend(model, asked, feature)
    return quantize_model(
        model,
        default if asked.scheme is None else asked.scheme,
        asked.calibration,
        backend=asked.backend,
        host=asked.host,
        progress=asked.progress,
    )


def _refuse_backend(model: Any, asked: Asked, feature: str) -> None:
    """Refuse a backend that learns nothing of the kind, before anything is quantized."""
    host = asked.host or plugin_host(TuningConfig())
    if asked.backend is None:
        card, settings = find_adapter(model, host), None
    else:
        settings = host.read("adapters", asked.backend)
        card = host.adapters()[settings.kind]
    try:
        features = card.build(settings).capability().features
    except SchemeError:
        # It says so for an opened model only, which is asked below.
        return
    _check_feature(card.name, features, feature)


def _check_feature(backend: str, features: Collection[str], feature: str) -> None:
    if feature not in features:
        raise SchemeError(
            f"backend {backend!r} has no training of this kind (no feature {feature!r}): "
            f"{_REMEDIES[feature]}"
        )


def _session(quantized: Quantized, feature: str) -> Session:
    """Return the float session that a quantized model was made on, which learns.

    Raises:
        ConfigError: If it is not known.
        SchemeError: If the backend does not learn so.
    """
    origin = quantized.origin
    if origin is None:
        raise ConfigError(
            "the float model is not known here: it is the result of a run, or was made in another "
            "process; give the float model and the recipe instead, such as "
            "prepare_qat(model, quantized.candidate.recipe, calibration)"
        )
    opened = origin.opened
    _check_feature(opened.name, opened.capability.features, feature)
    return origin.session or opened.session


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


def _in_training(native: Any, lesson: Lesson) -> Any:
    setattr(native, _LESSON, lesson)
    return native


def _lesson_of(module: Any) -> Lesson:
    """Return what a module in training was made from.

    Raises:
        ConfigError: If that is not known.
    """
    # What runs a model in parallel holds it under this name.
    inner = getattr(module, "module", None)
    lesson = getattr(module, _LESSON, None) or getattr(inner, _LESSON, None)
    if not isinstance(lesson, Lesson):
        raise ConfigError(
            f"a {type(module).__name__} that octavo did not prepare, or that came out of a pickle, "
            "cannot be converted: pass what prepare_qat returned, or prepare the model again and "
            "load the trained state_dict into that"
        )
    return lesson


def _learned(start: Quantized, made: Candidate, what: str) -> Quantized:
    """Return a learned candidate as a quantized model, with what was known of its start."""
    # Which schemes run is as before; its lines hold the remarks of the core too.
    told = {**made.ledger, **start.candidate.ledger}
    return replace(
        start,
        candidate=made.with_ledger(told, start.candidate.recipe),
        notes=(*start.notes, what),
    )
