"""The plugin host: pluggy behind a typed face. Not a global: a run owns one."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from importlib import import_module
from importlib.metadata import (
    EntryPoint,
    PackageNotFoundError,
    distribution,
    entry_points,
)
from importlib.resources import files
from operator import or_
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args

import pluggy
from pydantic import Field, TypeAdapter

from octavo.core.errors import (
    ConfigError,
    DuplicatePart,
    PluginError,
    UnknownPart,
    nearest,
    shown,
)
from octavo.core.system.log import remark
from octavo.core.values.settings import checked

from . import hookspecs
from .parts import AdapterPart, Part, PartConfig

P = TypeVar("P", bound=Part[Any])
Kind = Literal[
    "adapters",
    "strategies",
    "calibrators",
    "algorithms",
    "transforms",
    "objectives",
    "criteria",
    "exporters",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The families of parts; each has a hook ``octavo_<kind>``."""

NO_AUTOLOAD = "OCTAVO_NO_AUTOLOAD"
"""Environment variable: anything but empty, 0, false or no leaves other distributions out."""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One plugin, loaded or left out.

    Attributes:
        name: Its name in plugins.toml or its entry point's name.
        origin: ``built-in`` or the distribution that brings it.
        loaded: Whether its hooks take part.
        reason: Why it was left out, or what it still needs; else empty.
    """

    name: str
    origin: str
    loaded: bool
    reason: str = ""


class PluginHost:
    """Loads plugins and answers what they offer.

    Args:
        table: plugins.toml as a mapping; None reads the one in the package.
        third_party: False leaves out the entry points of other distributions, as does the
            environment variable OCTAVO_NO_AUTOLOAD=1 or ``policy.entry_points = false``.
        allow: When not empty, only these third-party plugins are loaded (beside the table's own).
        deny: Never loaded, built-in ones included (beside the table's own).

    Raises:
        DuplicatePart: If two plugins have one name.
    """

    def __init__(
        self,
        table: Mapping[str, Any] | None = None,
        *,
        third_party: bool = True,
        allow: Collection[str] = (),
        deny: Collection[str] = (),
    ) -> None:
        if table is None:
            table = tomllib.loads(files("octavo").joinpath("plugins.toml").read_text())
        policy = table.get("policy", {})
        self._allow = {*policy.get("allow", ()), *allow}
        self._deny = {*policy.get("deny", ()), *deny}
        self._manager = pluggy.PluginManager("octavo")
        self._manager.add_hookspecs(hookspecs)
        self._infos: list[PluginInfo] = []
        self._parts: dict[str, Mapping[str, Any]] = {}
        for name, row in table["builtin"].items():
            load = partial(import_module, row["module"])
            self._add(name, "built-in", load, _missing_requirements(row))
        is_allowed = third_party and policy.get("entry_points", True)
        if is_allowed and not _is_set(NO_AUTOLOAD):
            self._add_entry_points()

    def _add_entry_points(self) -> None:
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group="octavo"):
            other = found.get(entry.name)
            if other is not None or any(i.name == entry.name for i in self._infos):
                holder = _origin(other) if other is not None else "octavo itself"
                raise DuplicatePart(
                    f"two plugins are called {entry.name!r}: one of {holder} and one of "
                    f"{_origin(entry)}. Uninstall one, or deny the name in the plugin policy and "
                    "register the other under a new one"
                )
            found[entry.name] = entry
        for name, entry in sorted(found.items()):
            if self._allow and name not in self._allow:
                self._infos.append(
                    PluginInfo(name, _origin(entry), False, "not in the allow list")
                )
            else:
                self._add(name, _origin(entry), entry.load, "")

    def _add(
        self, name: str, origin: str, load: Callable[[], Any], missing: str
    ) -> None:
        if name in self._deny:
            self._infos.append(PluginInfo(name, origin, False, "denied by the policy"))
            return
        # Each plugin is loaded, registered and checked by itself, so that a broken one leaves the
        # others alone.
        module: Any = None
        try:
            module = load()
            self._manager.register(module, name)
            self._manager.check_pending()
        except Exception as error:
            if module is not None and self._manager.is_registered(module):
                self._manager.unregister(module)
            reason = f"{type(error).__name__}: {error}"
            self._infos.append(PluginInfo(name, origin, False, reason))
            remark(
                f"octavo plugin {name!r} of {origin} was left out: {reason}", "plugins"
            )
            return
        self._infos.append(PluginInfo(name, origin, True, missing))

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Return every plugin met, loaded or not, and why not."""
        return tuple(self._infos)

    def parts(self, kind: Kind) -> Mapping[str, Part[Any]]:
        """Return the cards of one kind, by name. A plugin whose hook raises is left out with a
        remark.

        Raises:
            DuplicatePart: If two plugins offer one name.
        """
        if kind not in self._parts:
            self._parts[kind] = MappingProxyType(self._collect(kind))
        return self._parts[kind]

    def adapters(self) -> Mapping[str, AdapterPart[Any]]:
        """Return the cards of all backends, by name."""
        return self.parts("adapters")  # type: ignore[return-value]

    def _collect(self, kind: Kind) -> dict[str, Part[Any]]:
        found: dict[str, Part[Any]] = {}
        wanted = AdapterPart if kind == "adapters" else Part
        for plugin, offered in self._call(f"octavo_{kind}"):
            for part in offered or ():
                if not isinstance(part, wanted):
                    remark(
                        f"octavo plugin {plugin!r} offers {part!r} among its {kind}; it must be a "
                        f"{wanted.__name__}",
                        "plugins",
                    )
                    continue
                if part.name in found:
                    other = found[part.name]
                    raise DuplicatePart(
                        f"{part.name!r} is offered twice among {kind}: {other.target} and "
                        f"{part.target}; deny one plugin"
                    )
                found[part.name] = part
        return found

    def _call(self, hook: str, **arguments: Any) -> Iterable[tuple[str, Any]]:
        """Call a hook plugin by plugin, so that one that raises does not take the others down.

        Yields:
            (the plugin's name, what it returned).
        """
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            name = implementation.plugin_name
            taken = {k: v for k, v in arguments.items() if k in implementation.argnames}
            try:
                result = implementation.function(**taken)
                if not arguments and result is not None:
                    # A hook may be a generator, which raises only when it is read.
                    result = list(result)
            except Exception as error:
                self._say_what_raised(name, hook, error)
                continue
            yield name, result

    def _say_what_raised(self, name: str, hook: str, error: Exception) -> None:
        reason = f"{hook} raised {type(error).__name__}: {error}"
        self._infos = [
            replace(info, reason=reason) if info.name == name else info
            for info in self._infos
        ]
        remark(
            f"octavo plugin {name!r} raised in {hook}: {error!r}; it is left out there",
            "plugins",
        )

    def notify(self, hook: str, **arguments: Any) -> None:
        """Tell every plugin that something happened."""
        for _ in self._call(hook, **arguments):
            pass

    def part(self, kind: Kind, name: str) -> Part[Any]:
        """Return one card.

        Raises:
            UnknownPart: With the nearest names.
        """
        parts = self.parts(kind)
        if name not in parts:
            why = self._why_left_out(name)
            raise UnknownPart(
                f"no {_singular(kind)} called {name!r}{why}{nearest(name, parts)}"
            )
        return parts[name]

    def _why_left_out(self, name: str) -> str:
        for info in self._infos:
            if not info.loaded and info.name == name:
                return f" (plugin {name!r} was left out: {info.reason})"
        return ""

    def read(self, kind: Kind, raw: str | Mapping[str, Any] | PartConfig) -> PartConfig:
        """Check a part's settings against the config class that its card names.

        Args:
            kind: Which family of parts.
            raw: A name, a table with ``kind``, or settings already checked.

        Raises:
            UnknownPart: If no such part is loaded.
            ConfigError: If a setting is unknown or malformed.
        """
        if isinstance(raw, PartConfig):
            return raw
        if not isinstance(raw, (str, Mapping)):
            raise ConfigError(
                f"a {_singular(kind)} is a name or a table with a kind, not {shown(raw)}"
            )
        table = {"kind": raw} if isinstance(raw, str) else dict(raw)
        if not isinstance(table.get("kind"), str):
            raise ConfigError(
                f"a {_singular(kind)} needs a kind: one of {', '.join(sorted(self.parts(kind)))}"
            )
        part = self.part(kind, table["kind"])
        return checked(part.config, table, f"{_singular(kind)} {part.name!r}")

    def schema(self, kind: Kind) -> dict[str, Any]:
        """Return the JSON schema of every config class of a kind, third parties' included."""
        configs = [part.config for part in self.parts(kind).values()]
        if len(configs) == 1:
            return configs[0].model_json_schema()
        union: Any = reduce(or_, configs)
        return TypeAdapter(Annotated[union, Field(discriminator="kind")]).json_schema()


def _missing_requirements(row: Mapping[str, Any]) -> str:
    """Say which distributions a built-in plugin lacks, and how to install them; '' if none."""
    gone = []
    for name in row.get("needs", ()):
        try:
            distribution(name)
        except PackageNotFoundError:
            gone.append(name)
    if not gone:
        return ""
    extra = row.get("extra", "all")
    return f"needs {', '.join(gone)}: pip install 'octavo[{extra}]'"


def _origin(entry: EntryPoint | None) -> str:
    if entry is None or entry.dist is None:
        return "an unknown distribution"
    return f"{entry.dist.name} {entry.dist.version}"


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "0", "false", "no")


def _singular(kind: str) -> str:
    return {"strategies": "strategy", "criteria": "criterion"}.get(
        kind, kind.removesuffix("s")
    )


__all__ = ["KINDS", "NO_AUTOLOAD", "Kind", "PluginError", "PluginHost", "PluginInfo"]
