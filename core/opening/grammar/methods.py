"""Methods of a scheme, found by their cards: third parties' join by theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from octavo.core.contract.algorithm import NeedsConfig
from octavo.core.contract.parts import Part
from octavo.core.contract.plugins import Kind, PluginHost
from octavo.core.contract.recovery import QAT, RECOVERIES, recovery_settings
from octavo.core.errors import ConfigError, nearest
from octavo.core.values.scheme import PartChoice, Scalar

from .aliases import BIAS_CORRECTION, METHODS
from .written import Term, plain

Family = Literal["transform", "algorithm", "calibrator", "recovery"]

FAMILIES: Mapping[Family, str] = MappingProxyType(
    {
        "transform": "rescales channels before anything is quantized",
        "algorithm": "rounds weights",
        "calibrator": "turns observed inputs into a range",
        "recovery": "learns after quantization",
    }
)
"""Kinds of methods, in the order in which they take effect."""

_CARDS: Mapping[Family, Kind] = MappingProxyType(
    {
        "transform": "transforms",
        "algorithm": "algorithms",
        "calibrator": "calibrators",
    }
)
_QUANTIZED = frozenset({"static", "dynamic", "weight_only"})
_NO_DATA = "rescale"
"""What a need begins with that asks something of the backend, not of calibration."""


@dataclass(frozen=True, slots=True)
class Method:
    """One thing that a scheme does beside its format.

    Attributes:
        family: What kind of thing.
        choice: The part with its settings.
        card: Its description; None for a recovery, which every backend carries out by itself.
        brings: The calibrator that comes with it; empty where there is none.
    """

    family: Family
    choice: PartChoice
    card: Part[Any] | None = None
    brings: str = ""

    @property
    def name(self) -> str:
        """As it is written in a scheme."""
        return plain(self.choice.kind)

    @property
    def modes(self) -> frozenset[str]:
        """Modes of schemes in which it has something to do."""
        if self.card is not None and self.card.modes:
            return self.card.modes
        if self.family == "calibrator":
            return frozenset({"static"})
        # Block reconstruction and distillation learn the rounding of stored weights.
        learns_stored = self.family == "recovery" and self.choice.kind != QAT
        return frozenset({"weight_only"}) if learns_stored else _QUANTIZED

    @property
    def format(self) -> str:
        """The format that its bare name stands for; empty where there is none."""
        return self.card.format if self.card is not None else ""

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        if self.card is not None:
            return self.card.summary
        return RECOVERIES[self.choice.kind].what

    def needs_data(self, host: PluginHost) -> bool:
        """Return whether it looks at calibration data, with its settings."""
        if self.card is None:
            return self.choice.kind != QAT
        if self.family == "calibrator":
            return True
        settings = host.read(_CARDS[self.family], self.choice.table())
        needs = self.card.needs
        if isinstance(settings, NeedsConfig):
            needs = settings.needs(needs)
        return any(not need.startswith(_NO_DATA) for need in needs)


def find_methods(term: Term, host: PluginHost) -> tuple[Method, ...]:
    """Return what a term names; a name that several families have means all of them.

    So ``awq`` is its scale search and its clip search, as in the paper, and ``algorithm:awq`` the
    second alone.

    Args:
        term: Its name may be a plain one (:data:`~.aliases.METHODS`).
        host: Knows the cards.

    Returns:
        One method for each family that has the name; () where none has.

    Raises:
        ConfigError: If its family or an option is unknown (with the nearest name), or an option is
            malformed.
    """
    if term.family and term.family not in FAMILIES:
        raise ConfigError(
            f"method {str(term)!r}: there is no kind of method called {term.family!r}"
            f"{nearest(term.family, FAMILIES)}"
        )
    found = tuple(_named(term, host))
    return tuple(_with_options(found, term, host))


def method_names(host: PluginHost) -> list[str]:
    """Return every name that a method may have, as it is written in a scheme."""
    names = [BIAS_CORRECTION, *METHODS, *map(plain, RECOVERIES)]
    for kind in _CARDS.values():
        names += map(plain, host.parts(kind))
    return list(dict.fromkeys(names))


def all_methods(host: PluginHost) -> list[Method]:
    """Return every method, by family."""
    found = []
    for family, kind in _CARDS.items():
        for name, card in host.parts(kind).items():
            choice = PartChoice(kind=name)
            found.append(Method(family, choice, card, card.brings))
    found += [Method("recovery", PartChoice(kind=kind)) for kind in RECOVERIES]
    return found


def _named(term: Term, host: PluginHost) -> Iterator[Method]:
    for method in all_methods(host):
        if method.name != term.name:
            continue
        if not term.family:
            yield method
        elif term.family == method.family:
            # That part and nothing else.
            yield replace(method, brings="")


def _with_options(
    found: tuple[Method, ...], term: Term, host: PluginHost
) -> Iterator[Method]:
    """Yield the methods of a term with those of its options that are theirs, checked.

    Raises:
        ConfigError: If an option is nobody's, or malformed.
    """
    unclaimed = {name for name, _ in term.options}
    for method in found:
        own = _options_of(method)
        # One method's unknown option is told by its own settings, with the nearest name.
        is_alone = len(found) == 1
        mine = tuple(o for o in term.options if is_alone or o[0] in own)
        unclaimed -= {name for name, _ in mine}
        yield _checked(method, mine, host)
    if found and unclaimed:
        known = {name for method in found for name in _options_of(method)}
        name = min(unclaimed)
        raise ConfigError(
            f"method {term.name!r} has no setting {name!r}{nearest(name, known)}"
        )


def _options_of(method: Method) -> frozenset[str]:
    if method.card is None:
        settings = RECOVERIES[method.choice.kind].settings
        return frozenset(settings.__dataclass_fields__)
    return frozenset(method.card.config.model_fields) - {"kind"}


def _checked(
    method: Method, options: tuple[tuple[str, Scalar], ...], host: PluginHost
) -> Method:
    choice = PartChoice(kind=method.choice.kind, options=options)
    if method.card is None:
        recovery_settings(choice)
    else:
        host.read(_CARDS[method.family], choice.table())
    return replace(method, choice=choice)


__all__ = [
    "FAMILIES",
    "Family",
    "Method",
    "all_methods",
    "find_methods",
    "method_names",
]
