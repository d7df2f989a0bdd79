"""Values that are checked when they are made, and refuse with an error of octavo's own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from octavo.core.errors import ConfigError, nearest, raised_as, shown

M = TypeVar("M", bound=BaseModel)


class Checked(BaseModel):
    """Base of frozen values that refuse unknown fields. A wrong argument of the constructor is a
    :class:`ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **data: Any) -> None:
        cls = type(self)
        with raised_as(ConfigError, cls.__name__):
            try:
                super().__init__(**data)
            except ValidationError as error:
                raise ConfigError(explain(error, cls, cls.__name__)) from error

    # So marked, pydantic does not take this for a constructor of one class's own, which it would
    # have to call for each value inside another; these are checked as parts of the whole, and the
    # message names the place.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def checked(model: type[M], raw: Any, where: str) -> M:
    """Read a value from plain data.

    Args:
        model: Its class.
        raw: A mapping, or whatever the class takes.
        where: Where the data came from, for the message.

    Raises:
        ConfigError: If it does not fit; the message names each wrong place.
    """
    with raised_as(ConfigError, where):
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(explain(error, model, where)) from error


def _said(message: str) -> str:
    """Return pydantic's message without the kind of error that it puts before ours."""
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def explain(error: ValidationError, model: type[Any], where: str) -> str:
    """Turn a pydantic error into one message that names the setting and, for unknown keys, the
    nearest ones."""
    lines = []
    for item in error.errors():
        place = item["loc"]
        path = ".".join(str(step) for step in place)
        if item["type"] == "extra_forbidden":
            hint = nearest(str(place[-1]), _fields(model, place[:-1]))
            lines.append(f"unknown setting {path!r}{hint}")
        else:
            lines.append(
                f"{path or 'value'}: {_said(item['msg'])} (got {shown(item['input'])})"
            )
    return f"{where}: " + "; ".join(lines)


def _fields(model: Any, path: tuple[Any, ...]) -> Collection[str]:
    """Return the settings that there are at a place below a class of settings."""
    for step in path:
        field = getattr(model, "model_fields", {}).get(step)
        if field is not None:
            model = _settings_class(field.annotation) or model
    return getattr(model, "model_fields", {}).keys()


def _settings_class(annotation: Any) -> Any:
    """Return the class of settings in an annotation: itself, in a union, in a container of them.

    None where there is none.
    """
    inner = getattr(annotation, "__args__", ())
    innermost = [kind for part in inner for kind in getattr(part, "__args__", ())]
    for kind in (annotation, *inner, *innermost):
        if hasattr(kind, "model_fields"):
            return kind
    return None
