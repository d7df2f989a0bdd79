"""What a recipe may learn from data after quantization: the recoveries by name.

``Recipe.recovery`` names them in order, with settings where these are not the defaults. Who carries
them out is a backend's :class:`~octavo.core.contract.training.Training`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter, ValidationError

from octavo.core.errors import ConfigError, nearest, shown
from octavo.core.numerics.affine import is_integer
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice

from .training import Distillation, Qat, Reconstruction

RECONSTRUCTION = "reconstruction"
DISTILLATION = "distillation"
QAT = "qat"


Settings = Reconstruction | Distillation | Qat


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kind of recovery.

    Attributes:
        settings: Class of its settings.
        feature: Of a capability, which a backend declares that carries it out.
        what: In a few words, for messages.
    """

    settings: type[Any]
    feature: str
    what: str


RECOVERIES: Mapping[str, Recovery] = {
    RECONSTRUCTION: Recovery(
        Reconstruction, "block_reconstruction", "block reconstruction"
    ),
    DISTILLATION: Recovery(Distillation, "distillation", "distillation"),
    QAT: Recovery(Qat, "training", "quantization-aware training"),
}
"""Kind -> what it is; in the order from the cheapest to the dearest."""


def recovery_settings(choice: PartChoice) -> Settings:
    """Return the settings of a step of recovery, checked.

    Raises:
        ConfigError: If there is no such kind or setting (with the nearest name), or a value is
            malformed.
    """
    kind = _known(choice.kind)
    options = dict(choice.options)
    fields = kind.settings.__dataclass_fields__
    for name in options:
        if name not in fields:
            hint = nearest(name, fields)
            raise ConfigError(f"recovery {choice.kind!r} has no setting {name!r}{hint}")
        # Counts, rates and temperatures: none of them means anything below zero.
        value = options[name]
        if isinstance(value, int | float) and value < 0:
            raise ConfigError(
                f"recovery {choice.kind!r}: {name} is {value}, and cannot be negative"
            )
    try:
        found: Settings = TypeAdapter(kind.settings).validate_python(options)
    except ValidationError as error:
        (first, *_) = error.errors()
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"recovery {choice.kind!r}: {place}: {first['msg']} (got {shown(first['input'])})"
        ) from error
    return found


AFTER_ROUNDING: Mapping[str, Mapping[str, Any]] = {
    DISTILLATION: {"rate": 0, "scale_rate": 0.001, "half": False},
    RECONSTRUCTION: {"hold_back": True},
}
"""Kind -> settings of a step that begins where an algorithm has ended, where nobody says others.

Distillation: moving codes undoes what the algorithm won, and products in bfloat16 are coarser than
what is left to be learned. Measured on the small Llama, 24 steps of 4 x 256 tokens, held-out
divergence: gptq at 2.5 bits -13 % at a rate of 0.0005, -18 % at 0.002, nothing at 0.005; gptq at
3.5 bits -12 % at 0.001; rtn at 2.5 bits -34 % at 0.002.
"""


def after_rounding(step: PartChoice) -> PartChoice:
    """Return a step with the settings that it has where it refines what an algorithm made."""
    options = {**AFTER_ROUNDING.get(step.kind, {}), **dict(step.options)}
    return PartChoice(kind=step.kind, options=tuple(sorted(options.items())))


JUDGES = 4
"""One batch of so many is held back from distillation."""


def held_back(batches: int) -> range:
    """Return the indices of the batches that distillation does not learn from, and is judged by.

    One in four; the last one where there are fewer, which a single batch is learned from too.

    Args:
        batches: How many there are, at least one.
    """
    return range(min(JUDGES, batches) - 1, batches, JUDGES)


def check_recovery(steps: Sequence[PartChoice]) -> None:
    """Look at the steps of a recipe's recovery.

    Raises:
        ConfigError: If one is unknown or has a wrong setting, or one comes after ``qat``, whose
            result is a trained model and no start for another step.
    """
    for step in steps:
        recovery_settings(step)
    for before, after in pairwise(steps):
        if before.kind == QAT:
            raise ConfigError(
                f"recovery {after.kind!r} comes after {QAT!r}: training is the last step, put "
                f"{after.kind!r} before it"
            )


def nothing_to_learn(kind: str, recipe: Recipe) -> str:
    """Return why a recipe leaves a kind of recovery nothing that it learns; '' where there may be.

    What only a backend knows of its model comes later, and is its own error.

    Args:
        kind: Of the recovery.
        recipe: What is quantized.
    """
    weights = [
        (scheme.mode, scheme.weight)
        for scheme in recipe.schemes.values()
        if scheme.weight is not None
    ]
    if kind != QAT:
        stored = [w for mode, w in weights if mode == "weight_only" and is_integer(w)]
        if stored:
            return ""
        return f"{_known(kind).what} learns stored integer weights, and there are none"
    if not weights:
        return "training needs quantized weights, and there are none"
    others = sorted({w.dtype for _, w in weights if not is_integer(w)})
    if others:
        return f"training takes integer weights, and there are {', '.join(others)}"
    return ""


def _known(kind: str) -> Recovery:
    found = RECOVERIES.get(kind)
    if found is None:
        names = ", ".join(RECOVERIES)
        hint = nearest(kind, RECOVERIES)
        raise ConfigError(f"there is no recovery {kind!r}{hint}; there are: {names}")
    return found


__all__ = [
    "DISTILLATION",
    "QAT",
    "RECONSTRUCTION",
    "RECOVERIES",
    "Qat",
    "Recovery",
    "check_recovery",
    "held_back",
    "nothing_to_learn",
    "recovery_settings",
]
