"""What training starts from, and the way back from a trained module.

Each public function takes what :func:`octavo.quantize_model` returns, or a model and a scheme,
which is quantized first. So what is trained is what a recipe says, by one path. What learns is the
backend's, behind :meth:`Session.training`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.core.contract.adapter import Candidate, Session
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, SchemeError
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import find_adapter, plugin_host
from octavo.core.results.quantized import Quantized
from octavo.core.tuning.quantize import quantize_model
from octavo.core.values.recipe import Recipe

Scheme = str | Path | Recipe | TuningConfig | Mapping[str, Any]
Backend = str | Mapping[str, Any] | None
_REMEDIES: Mapping[str, str] = {
    "training": "train the float model, then quantize it again; the torch backend trains",
    "low_rank": "the torch backend has low-rank updates",
    "low_rank_results": "the torch backend saves, merges and keeps them",
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


@dataclass(frozen=True)
class Asked:
    """How a float model is to be quantized: what :func:`octavo.quantize_model` takes."""

    scheme: Scheme | None
    calibration: Any
    backend: Backend
    host: PluginHost | None
    progress: bool | None


def quantized_model(model: Any, asked: Asked, default: str, feature: str) -> Quantized:
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
        # What is trained here may be meant for a machine that has kernels for it.
        simulated=feature == "training",
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


def learning_session(quantized: Quantized, feature: str) -> Session:
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


def in_training(native: Any, lesson: Lesson) -> Any:
    """Return a module in training, which knows what it was made from."""
    setattr(native, _LESSON, lesson)
    return native


def lesson_of(module: Any) -> Lesson:
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


def learned(start: Quantized, made: Candidate, what: str) -> Quantized:
    """Return a learned candidate as a quantized model, with what was known of its start."""
    # Lines of schemes that are as before hold the remarks of the core, too.
    before = start.candidate.ledger
    changed = {
        op: line
        for op, line in made.ledger.items()
        if op not in before or before[op].requested != line.requested
    }
    told = {**before, **changed}
    return replace(start, candidate=made.with_ledger(told), notes=(*start.notes, what))
