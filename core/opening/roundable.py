"""Weight algorithms that cannot round what a scheme asks for: left out of what ops may take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError
from octavo.core.values.scheme import RTN, OpScheme

Choices = Mapping[str, tuple[OpScheme, ...]]


def roundable(choices: Choices, host: PluginHost | None) -> tuple[Choices, str]:
    """Leave out schemes whose algorithm cannot round their weight, or would change nothing.

    Args:
        choices: Op -> what it may take.
        host: Knows the algorithms' cards; None takes those that are installed, if rules name any.

    Returns:
        Op -> its choices, and what was left out; empty for nothing.

    Raises:
        ConfigError: If that leaves an op nothing of what its rules name.
    """
    named = any(_is_named(scheme) for own in choices.values() for scheme in own)
    if not named:
        return choices, ""
    host = host or PluginHost()
    kept: dict[str, tuple[OpScheme, ...]] = {}
    left_out: dict[str, None] = {}
    for name, own in choices.items():
        reasons = {scheme: why_not_rounded(scheme, host) for scheme in own}
        kept[name] = tuple(scheme for scheme in own if not reasons[scheme])
        told = dict.fromkeys(filter(None, reasons.values()))
        if told and all(scheme.is_float for scheme in kept[name]):
            raise ConfigError(f"the rules leave op {name!r} nothing: {'; '.join(told)}")
        left_out.update(told)
    return kept, "; ".join(left_out)


def why_not_rounded(scheme: OpScheme, host: PluginHost) -> str:
    """Return why a scheme's algorithms cannot round its weight; '' where they can."""
    return next(_reasons(scheme, host), "")


def _reasons(scheme: OpScheme, host: PluginHost) -> Iterator[str]:
    if not _is_named(scheme):
        return
    assert scheme.weight is not None
    dtype = scheme.weight.dtype
    for choice in scheme.algorithms:
        why = why_not_by(choice.kind, dtype, host)
        if why:
            yield why


def why_not_by(kind: str, dtype: str, host: PluginHost) -> str:
    """Return why an algorithm cannot round to a dtype, or to a word for one; '' where it can.

    Of an unknown one nothing is said: that is told where it would be built, with the nearest name.
    """
    cards = host.parts("algorithms")
    card = cards.get(kind)
    if card is None or card.can_round(dtype):
        return ""
    able = sorted(name for name, other in cards.items() if other.can_round(dtype))
    return f"{kind} cannot round {dtype}, or would change nothing; what can: {', '.join(able)}"


def _is_named(scheme: OpScheme) -> bool:
    return scheme.weight is not None and scheme.algorithms != (RTN,)


__all__ = ["roundable", "why_not_by", "why_not_rounded"]
