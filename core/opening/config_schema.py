"""The JSON schema of a configuration, for editors and for checks outside of Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import TuningConfig

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


def config_schema(host: PluginHost) -> dict[str, Any]:
    """Return the schema, with the settings of every loaded part, third parties' included."""
    schema = TuningConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    properties = schema["properties"]
    properties["strategy"] = {
        "anyOf": _parts("strategies", host, definitions),
        "default": "auto",
    }
    one_backend = _backends(host, definitions)
    properties["baseline"] = {
        "anyOf": [*_backend_texts(host), *one_backend, {"type": "null"}],
        "default": None,
    }
    searched = {"anyOf": [*_backend_texts(host), *_searched(one_backend, definitions)]}
    properties["backends"] = {
        "anyOf": [{"type": "array", "items": searched}, {"type": "null"}],
        "default": None,
    }
    properties["accuracy"] = {"anyOf": _criteria(host, definitions)}
    minimised = {"anyOf": _parts("objectives", host, definitions)}
    definitions["ObjectiveGoals"]["properties"]["minimise"]["items"] = minimised
    rule = definitions["Rule"]["properties"]
    properties["transforms"] = _optional(_alternatives("transforms", host, definitions))
    properties["require"] = {**_listed("transforms", host, definitions), "default": []}
    rule["algorithm"] = _optional(_alternatives("algorithms", host, definitions))
    rule["calibrator"] = _optional(_listed("calibrators", host, definitions))
    return schema


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a setting that may be left out."""
    return {"anyOf": [*schema["anyOf"], {"type": "null"}], "default": None}


def _listed(kind: Any, host: PluginHost, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one part of a kind, or of a list of them."""
    one = _parts(kind, host, definitions)
    return {"anyOf": [*one, {"type": "array", "items": {"anyOf": one}}]}


def _alternatives(
    kind: Any, host: PluginHost, definitions: dict[str, Any]
) -> dict[str, Any]:
    """Return the schema of alternatives: each is one part, or a list of parts in order."""
    one = _parts(kind, host, definitions)
    in_order = {"type": "array", "items": {"anyOf": one}, "minItems": 1}
    return {"anyOf": [*one, {"type": "array", "items": {"anyOf": [*one, in_order]}}]}


def _parts(
    kind: Any, host: PluginHost, definitions: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return what a part of a kind may be: its name, or its settings, which are defined."""
    found: list[dict[str, Any]] = [{"type": "string", "enum": sorted(host.parts(kind))}]
    for name, part in sorted(host.parts(kind).items()):
        inner = part.config.model_json_schema()
        definitions.update(inner.pop("$defs", {}))
        definitions[f"{kind}.{name}"] = inner
        found.append({"$ref": f"#/$defs/{kind}.{name}"})
    return found


def _backend_texts(host: PluginHost) -> list[dict[str, Any]]:
    """Return what a backend may be as text: its name, or its name with settings in brackets."""
    names = sorted(host.adapters())
    either = "|".join(names)
    return [
        {"type": "string", "enum": names},
        {"type": "string", "pattern": rf"^({either})\(.*\)$"},
    ]


def _backends(host: PluginHost, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of each backend, each with one value."""
    return _parts("adapters", host, definitions)[1:]


def _searched(
    backends: list[dict[str, Any]], definitions: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the settings of each backend where each may be a list of values."""
    found = []
    for backend in backends:
        name = backend["$ref"].rpartition("/")[2]
        settings = dict(definitions[name])
        properties = {}
        for setting, schema in settings["properties"].items():
            several = {"type": "array", "items": schema, "minItems": 1}
            is_kind = setting == "kind"
            properties[setting] = schema if is_kind else {"anyOf": [schema, several]}
        definitions[f"searched.{name}"] = {**settings, "properties": properties}
        found.append({"$ref": f"#/$defs/searched.{name}"})
    return found


def _criteria(host: PluginHost, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of the criteria, whose kind may be left out."""
    criteria = [
        part.config.model_json_schema() for part in host.parts("criteria").values()
    ]
    for inner in criteria:
        definitions.update(inner.pop("$defs", {}))
    return criteria
