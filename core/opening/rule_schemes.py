"""Schemes by name in rules: read once, with the methods that are installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError

from .grammar.methods import Method
from .grammar.named import NamedScheme, read_named
from .rules import Rule

Named = Mapping[str, NamedScheme]
"""A rule's scheme as it is written -> what it stands for."""


def read_schemes(rules: Iterable[Rule], host: PluginHost | None = None) -> Named:
    """Return what the schemes of some rules stand for.

    Args:
        rules: The user's.
        host: Knows the methods; None takes those that are installed, if any rule names a scheme.

    Raises:
        ConfigError: If a scheme is unknown, cannot be read or contradicts itself; if it names what
            changes the whole model and cannot hold for some ops alone: a transform, or what is
            learned after quantization. The message says where that is written instead.
    """
    found: dict[str, NamedScheme] = {}
    for number, rule in enumerate(rules, 1):
        if rule.scheme is None or rule.scheme in found:
            continue
        host = host or PluginHost()
        named = read_named(rule.scheme, host)
        for method in named.methods:
            if why := _why_not_of_ops(method, named):
                raise ConfigError(f"rule {number}: scheme {rule.scheme!r} {why}")
        found[rule.scheme] = named
    return found


def _why_not_of_ops(method: Method, named: NamedScheme) -> str:
    """Return why a method cannot be a rule's; empty where it can."""
    name = method.name
    if method.family == "recovery":
        return (
            f"names {name}, which learns for the whole model: leave it out, and name it in recover "
            "(of a search) or in the scheme of a whole model"
        )
    if method.family != "transform":
        return ""
    kind = method.choice.kind
    rest = ""
    if any(other.kind == kind for other in named.algorithms):
        rest = f", write algorithm:{name} for the rounding of these ops"
    elif method.brings:
        rest = f", write {method.brings} for its calibrator"
    return (
        f"names {name}, which rescales channels across the whole model: leave it out{rest}, and "
        f'say require = ["{kind}"] for every recipe, or transforms = ["{kind}"] to compare'
    )


__all__ = ["Named", "read_schemes"]
