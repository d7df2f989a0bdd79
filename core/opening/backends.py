"""The backends that a run is asked for, each with one value of every setting.

A setting that is given as a list is searched: each value makes a backend of its own, with a space
and trials of its own. So does naming a backend more than once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from octavo.core.contract.parts import AdapterPart, PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, shown
from octavo.core.values.scheme import Scalar

from .grammar.written import Term, read, read_value

Written = str | Mapping[str, Any] | PartConfig
"""A backend as it is written: its name, settings with ``kind``, or checked settings."""

BAR = "|"
"""Stands between the values of an option in a backend's text: ``onnx(threads=1|2)``."""


@dataclass(frozen=True, slots=True)
class AskedBackend:
    """A backend with its settings.

    Attributes:
        name: What the run calls it, and its recipes name it: the card's name, and behind it what
            tells it from others of the same card: ``onnx``, ``onnx(threads=1)``.
        settings: Checked.
    """

    name: str
    settings: PartConfig

    @property
    def kind(self) -> str:
        """The card's name."""
        return self.settings.kind


@dataclass(frozen=True, slots=True)
class AskedBackends:
    """The backends of a run.

    Attributes:
        searched: In the order in which they are named.
        baseline: Whose float model everything is measured against, where that is said: one of
            those, or another. None leaves it to the run.
    """

    searched: tuple[AskedBackend, ...]
    baseline: AskedBackend | None = None


def asked_backends(
    tables: Iterable[Written],
    host: PluginHost,
    baseline: Written | None = None,
) -> AskedBackends:
    """Return the backends that a configuration names.

    Args:
        tables: Names (``onnx``, ``onnx(threads=1)``) or settings with ``kind``.
        host: Knows the cards.
        baseline: The same, of the backend whose float model is the baseline; a name alone is the
            first one of that name that is searched.

    Raises:
        UnknownPart: If there is no such backend.
        ConfigError: If a setting is unknown or malformed, or two are one backend with the same
            settings.
    """
    every = [settings for table in tables for settings in _one_by_one(table, host)]
    for place, settings in enumerate(every):
        if settings in every[:place]:
            raise ConfigError(
                f"backend {settings.kind!r} is named twice with the same settings: name it once, "
                f"or give the two different ones ({{kind = {settings.kind!r}, ...}})"
            )
    if baseline is None:
        return AskedBackends(tuple(AskedBackend(_name(s, every), s) for s in every))
    base = only_backend(baseline, host).settings
    if isinstance(baseline, str) and "(" not in baseline:
        base = next((s for s in every if s.kind == base.kind), base)
    known = every if base in every else [*every, base]
    return AskedBackends(
        tuple(AskedBackend(_name(s, known), s) for s in every),
        AskedBackend(_name(base, known), base),
    )


def kinds_of(tables: Iterable[Written], host: PluginHost) -> tuple[str, ...]:
    """Return the names of the cards that a configuration names, each once.

    Raises:
        UnknownPart: If there is no such backend.
        ConfigError: If a setting is unknown or malformed.
    """
    return tuple(dict.fromkeys(a.kind for a in asked_backends(tables, host).searched))


def only_backend(table: Written, host: PluginHost) -> AskedBackend:
    """Return a backend where no search could choose among several values of a setting.

    Raises:
        ConfigError: If there are several, or it is unknown or malformed.
    """
    found = list(_one_by_one(table, host))
    if len(found) > 1:
        several = ", ".join(_name(each, found) for each in found)
        raise ConfigError(
            f"backend {found[0].kind!r} is asked for with {len(found)} values of a setting "
            f"({several}), and nothing here compares them: give one, or let octavo.autotune "
            "search among them"
        )
    return AskedBackend(_name(found[0], found), found[0])


def as_given(
    card: AdapterPart[Any], asked: AskedBackends, host: PluginHost
) -> AskedBackend:
    """Return the backend that the model is opened on as it was given.

    It is the first of its card that is asked for. Where none is, it has the settings that all of
    those have, as far as it knows them (threads): the float model runs as the candidates do.
    """
    of_card = [each for each in (*asked.searched, asked.baseline) if each is not None]
    for each in of_card:
        if each.kind == card.name:
            return each
    tables = [each.settings.model_dump(exclude_unset=True) for each in asked.searched]
    shared = {
        name: value
        for name, value in tables[0].items()
        if name != "kind" and all(table.get(name) == value for table in tables)
    }
    known = {n: v for n, v in shared.items() if n in card.config.model_fields}
    try:
        settings = host.read("adapters", {**known, "kind": card.name})
    except ConfigError:
        # The same word may mean another thing there.
        settings = host.read("adapters", card.name)
    return AskedBackend(card.name, settings)


def beside(first: AskedBackend, asked: AskedBackends) -> Iterator[AskedBackend]:
    """Yield the backends that are opened after the first, the baseline's last."""
    for each in asked.searched:
        if each != first:
            yield each
    base = asked.baseline
    if base is not None and base != first and base not in asked.searched:
        yield base


def baseline_of(source: str, asked: AskedBackends) -> str:
    """Return the name of the backend whose float model is the baseline.

    A search over one foreign runtime is measured against the float model there: same threads,
    device and runtime.
    """
    if asked.baseline is not None:
        return asked.baseline.name
    names = [each.name for each in asked.searched]
    is_one_runtime = len({each.kind for each in asked.searched}) == 1
    return names[0] if is_one_runtime and source not in names else source


def backend_table(written: Written) -> Written:
    """Return a backend's settings of a text with options: ``onnx(threads=1)``.

    Raises:
        ConfigError: If the text cannot be read.
    """
    if not isinstance(written, str) or "(" not in written:
        return written
    terms = read(written).terms
    if len(terms) != 1 or terms[0].family:
        raise ConfigError(
            f"backend {shown(written)} cannot be read; write it so: onnx(threads=1)"
        )
    options = {name: _several(value, name) for name, value in terms[0].options}
    return {"kind": written.partition("(")[0].strip(), **options}


def _several(value: Scalar, name: str) -> Scalar | list[Scalar]:
    """Return the values of an option that names several: ``1|2``."""
    if not isinstance(value, str) or BAR not in value:
        return value
    return [read_value(part.strip(), name) for part in value.split(BAR) if part]


def _one_by_one(written: Written, host: PluginHost) -> Iterator[PartConfig]:
    """Yield checked settings for each combination of what is given as a list."""
    table = backend_table(written)
    if not isinstance(table, Mapping):
        yield host.read("adapters", table)
        return
    several = {
        name: values
        for name, values in table.items()
        if _is_searched(table, name, host)
    }
    for chosen in product(*several.values()):
        values = dict(zip(several, chosen, strict=True))
        yield host.read("adapters", {**table, **values})


def _is_searched(table: Mapping[str, Any], name: str, host: PluginHost) -> bool:
    """Return whether a setting's value is a list of values, for a setting that takes no list."""
    values = table[name]
    if not isinstance(values, (list, tuple)) or not values:
        return False
    config = host.part("adapters", str(table.get("kind"))).config
    try:
        config.model_validate(table)
    except ValidationError as error:
        return any(found["loc"][:1] == (name,) for found in error.errors())
    return False


def _name(settings: PartConfig, every: Sequence[PartConfig]) -> str:
    """Return a backend's name: what differs among those of its card stands behind it.

    Defaults are left out, so that a backend as it comes has the plain name.
    """
    own = [each for each in every if each.kind == settings.kind]
    tables = [each.model_dump(mode="json") for each in own]
    mine = settings.model_dump(mode="json")
    usual = type(settings).model_validate({"kind": settings.kind})
    defaults = usual.model_dump(mode="json")
    options = []
    for name, value in sorted(mine.items()):
        differs = any(table[name] != value for table in tables)
        if differs and value != defaults[name]:
            options.append((name, _as_option(value)))
    return str(Term(settings.kind, tuple(options)))


def _as_option(value: Any) -> Scalar:
    """Return a value as options hold it: of a list, one text that is read as a list again."""
    if not isinstance(value, (list, tuple)):
        return value if isinstance(value, (str, int, float)) else str(value)
    return BAR.join(map(str, value)) + (BAR if len(value) == 1 else "")


__all__ = [
    "AskedBackend",
    "AskedBackends",
    "Written",
    "as_given",
    "asked_backends",
    "backend_table",
    "baseline_of",
    "beside",
    "kinds_of",
    "only_backend",
]
