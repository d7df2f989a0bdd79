"""The page of settings: tables from the configuration's JSON schema."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import griffe

from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.config_schema import config_schema
from scripts.plain_roles import plain

Schema = Mapping[str, Any]

TABLES = {
    "[accuracy]": "TolerancePlace",
    "[accuracy.metrics.NAME]": "MetricGoal",
    "[objective]": "ObjectiveGoals",
    "[[rules]]": "Rule",
    "[rules.weight], [rules.input]": "SpecRule",
    "[racing]": "RaceConfig",
    "[executor]": "ExecutorConfig",
    "[plugins]": "PluginPolicy",
}
"""Heading in TOML -> name of the schema that describes it."""

KINDS = {
    "strategies": ("Strategies", 'strategy = { kind = "NAME" }'),
    "adapters": ("Backends", 'backends = [{ kind = "NAME" }]'),
    "objectives": ("Objectives", 'objective = { minimise = [{ kind = "NAME" }] }'),
    "algorithms": ("Weight algorithms", 'rules = [{ algorithm = { kind = "NAME" } }]'),
    "calibrators": ("Calibrators", 'rules = [{ calibrator = { kind = "NAME" } }]'),
    "transforms": ("Transforms", 'transforms = [{ kind = "NAME" }]'),
}
"""Kind of part -> its heading, and where its settings stand in TOML."""

LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
LARGEST_SHOWN = 10**6
"""Limits above it only keep numbers within what machines can hold: no reader needs them."""


def settings() -> str:
    """Return Markdown: every setting with its type, default and meaning."""
    host = PluginHost(third_party=False)
    schema = config_schema(host)
    described = {**schema["$defs"], "TolerancePlace": _criterion(schema)}
    return "\n".join([*_run(schema), *_tables(described), *_parts(host, described)])


def _criterion(schema: Schema) -> Schema:
    """Return the settings of the one built-in criterion."""
    (criterion,) = schema["properties"]["accuracy"]["anyOf"]
    found: Schema = criterion
    return found


def _run(schema: Schema) -> Iterator[str]:
    yield from ("## The run", "", *table(schema), "")


def _tables(described: Schema) -> Iterator[str]:
    for heading, name in TABLES.items():
        summary = _docstring(described[name])[0]
        yield from (f"## `{heading}`", "", summary, "", *table(described[name]), "")


def _parts(host: PluginHost, described: Schema) -> Iterator[str]:
    for kind, (heading, place) in KINDS.items():
        yield from (f"## {heading}", "", "```toml", place, "```", "")
        for name, part in sorted(host.parts(kind).items()):
            schema = described[f"{kind}.{name}"]
            summary = _docstring(schema)[0]
            yield from (f"### `{name}`", "", summary, "")
            yield from _settings_of(part.config, schema)
            yield ""


def _settings_of(config: type, schema: Schema) -> Iterator[str]:
    if set(schema["properties"]) == {"kind"}:
        yield "No settings."
        return
    # A setting that is inherited is described where it was declared.
    bases = [_docstring({"description": base.__doc__ or ""}) for base in config.__mro__]
    inherited = {name: text for _, found in bases for name, text in found.items()}
    yield from table(schema, inherited)


def table(
    schema: Schema, inherited: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """Yield the lines of a table of one schema's settings.

    Raises:
        KeyError: A setting has no description: neither its own, nor one in the docstring.
    """
    meanings = {**inherited, **_docstring(schema)[1]}
    yield from ("| setting | type | default | meaning |", "|---|---|---|---|")
    for name, field in schema["properties"].items():
        if name == "kind" and "const" in field:
            continue  # the part's own name: it stands in the heading
        meaning = field.get("description") or meanings[name]
        cells = (f"`{name}`", kind_of(field), _default(field), meaning)
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _docstring(schema: Schema) -> tuple[str, dict[str, str]]:
    """Return the text of a schema's docstring, and what it says of each attribute."""
    text = plain(schema.get("description", ""))
    sections = griffe.Docstring(inspect.cleandoc(text)).parse("google", warnings=False)
    summary = ""
    meanings: dict[str, str] = {}
    for section in sections:
        if section.kind is griffe.DocstringSectionKind.text:
            summary = section.value
        if section.kind is griffe.DocstringSectionKind.attributes:
            meanings |= {each.name: each.description for each in section.value}
    return summary, meanings


def kind_of(field: Schema) -> str:
    """Return what a setting may be, in words."""
    if "$ref" in field:
        return _referred(field["$ref"].rpartition("/")[2])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if "anyOf" in field:
        return _either(field["anyOf"])
    if field.get("type") == "array":
        return "list of: " + kind_of(field.get("items", {}))
    if field.get("type") == "object":
        return "table"
    return _number_or_text(field)


def _referred(name: str) -> str:
    for heading, described in TABLES.items():
        if described == name:
            return f"table `{heading}`"
    return "table"


def _either(kinds: list[Schema]) -> str:
    """Return the alternatives, each once; that a setting may be left out, its default says."""
    words = [kind_of(kind) for kind in kinds if kind.get("type") != "null"]
    return " or ".join(dict.fromkeys(words))


def _number_or_text(field: Schema) -> str:
    words = {
        "string": "text",
        "boolean": "`true` or `false`",
        "integer": "whole number",
        "number": "number",
    }
    limits = [
        f"{word} {field[limit]:g}"
        for limit, word in LIMITS.items()
        if limit in field and field[limit] <= LARGEST_SHOWN
    ]
    return ", ".join([words.get(field.get("type", ""), "any value"), *limits])


def _default(field: Schema) -> str:
    default = field.get("default")
    if default is None or default in ([], {}):
        return "-"
    if isinstance(default, dict):
        return "its own defaults"
    return f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "&#124;")
