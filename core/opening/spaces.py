"""Capability x model x the user's rules -> a tuning space."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from types import MappingProxyType

from octavo.core.contract.adapter import Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, nearest
from octavo.core.quantizing.float_reasons import why_fixed
from octavo.core.values.graph import Op
from octavo.core.values.recipe import adapter_of
from octavo.core.values.scheme import (
    FLOAT,
    OpScheme,
    PartChoice,
    QuantSpec,
    in_order,
)
from octavo.core.values.space import TuningSpace
from octavo.core.values.units import find_units

from .alternatives import Chain, as_chain
from .repairs import repairs_in, with_repairs_that_run
from .roundable import roundable
from .rule_schemes import read_schemes
from .rules import Allowed, Rule, merged, rules_without_effect

_SHOWN = 3
"""Ops that a note names; the ledger has them all."""


def build_spaces(
    opened: Sequence[Opened],
    rules: Sequence[Rule],
    *,
    transforms: Sequence[PartChoice | Chain] = (),
    require: Chain = (),
    suggested: Mapping[str, PartChoice] = MappingProxyType({}),
    simulated: bool = False,
    host: PluginHost | None = None,
) -> dict[str, TuningSpace]:
    """Build one space for each backend.

    Args:
        opened: The backends.
        rules: The user's.
        transforms: Alternatives that the user names; a backend that cannot carry them out says so.
        require: Transforms that every recipe has, in front of those of each alternative.
        suggested: Op type -> what a strategy would like to compare, where it can be carried out and
            there is something to gain.
        simulated: Also offer schemes that are only simulated.
        host: Knows the methods that rules' schemes name; None takes those that are installed.

    Raises:
        ConfigError: If a rule matches nothing on any backend, or leaves an op nothing that the
            backend can carry out; or if transforms are required that a backend cannot carry out.
    """
    for number, rule in enumerate(rules, 1):
        if not any(rule.matches(op, o.name) for o in opened for op in o.view.ops):
            raise ConfigError(f"rule {number} {_why_no_match(rule, opened)}")
    return {
        o.name: build_space(
            o,
            rules,
            transforms=transforms,
            require=require,
            suggested=suggested,
            simulated=simulated,
            host=host,
        )
        for o in opened
    }


def build_space(
    opened: Opened,
    rules: Sequence[Rule] = (),
    *,
    transforms: Sequence[PartChoice | Chain] = (),
    require: Chain = (),
    suggested: Mapping[str, PartChoice] = MappingProxyType({}),
    simulated: bool = False,
    scales: bool = False,
    host: PluginHost | None = None,
) -> TuningSpace:
    """Build the space of one backend; see :func:`build_spaces`.

    ``scales`` offers each scheme with every format of scales that its kernel takes; without it,
    that is done for the ops whose rules name one.

    Raises:
        ConfigError: As there, or if low-rank repairs are asked for and no op can take one.
    """
    notes = list(opened.view.notes)
    named_schemes = read_schemes(rules, host)
    allowed = {
        op.name: merged(op, opened.name, rules, named_schemes) for op in opened.view.ops
    }
    offered = {
        op.name: _choices(op, opened, allowed[op.name], simulated, scales)
        for op in opened.view.ops
    }
    notes += _without_their_scheme(opened, allowed, offered)
    rounded, unrounded = roundable(offered, host)
    if unrounded:
        notes.append(f"left out: {unrounded}")
    choices, why = with_repairs_that_run(opened, rounded)
    is_asked = any(map(repairs_in, offered.values()))
    if is_asked and not any(map(repairs_in, choices.values())):
        raise ConfigError(
            f"low_rank repairs no op of this model: {why}; leave it out, or let the rules offer "
            "weight_only schemes of linear ops"
        )
    if why:
        notes.append(f"{why}: quantized without")
    named = [as_chain(alternative) for alternative in transforms]
    can_rescale = "rescale" in opened.capability.features
    if require and not can_rescale:
        raise ConfigError(
            f"{opened.name} does not offer rescale, which require = {in_order(require)} asks of "
            "every recipe: leave require out, or that backend"
        )
    if named and not can_rescale:
        left_out = "; ".join(map(in_order, named))
        notes.append(
            f"{opened.name} does not offer rescale: transforms {left_out} are left out"
        )
        named = []
    elif not named and can_rescale:
        gaining = (
            t for kind, t in suggested.items() if _could_gain(kind, opened, choices)
        )
        named = [(t,) for t in gaining if t not in require]
    alternatives = dict.fromkeys([require, *(require + chain for chain in named)])
    notes += rules_without_effect(opened, rules)
    units, remarks = find_units(opened.view, choices)
    return TuningSpace(opened.name, units, tuple(alternatives), (*notes, *remarks))


def _could_gain(
    kind: str, opened: Opened, choices: Mapping[str, tuple[OpScheme, ...]]
) -> bool:
    """Return whether rescaled channels may help an op of that type.

    They can be rescaled in front of it, and its activations may be quantized.
    """
    for group in opened.view.groups:
        if group.kind != "rescale":
            continue
        for name in group.members:
            is_of_kind = opened.view.by_name[name].type == kind
            if is_of_kind and any(s.input is not None for s in choices[name]):
                return True
    return False


def fixed_ops(opened: Opened, space: TuningSpace) -> dict[str, str]:
    """Return op -> why it stays float whatever the recipe, for the ops that have no choice."""
    found = {}
    for unit in space.units:
        if unit.tunable:
            continue
        for name in unit.ops:
            found[name] = why_fixed(opened.view.by_name[name], opened)
    return found


def _why_no_match(rule: Rule, opened: Sequence[Opened]) -> str:
    """Say what of a rule is not there, and what was probably meant."""
    ops = [op for o in opened for op in o.view.ops]
    names = [op.name for op in ops]
    for pattern in rule.ops or ():
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            meant = nearest(pattern.rstrip(".*"), names)
            return f"names op {pattern!r}, which matches nothing{meant}"
    types = [op.type for op in ops]
    for kind in rule.types or ():
        if kind not in types:
            meant = nearest(kind, types)
            return f"names op type {kind!r}, which this model does not have{meant}"
    names = [name for o in opened for name in (o.name, adapter_of(o.name))]
    backends = list(dict.fromkeys(names))
    for backend in rule.backends or ():
        if backend not in backends:
            meant = nearest(backend, backends)
            return f"names backend {backend!r}, which this run does not use{meant}"
    return (
        f"matches no op: no op has both the names {rule.ops} and the types {rule.types}"
    )


def _choices(
    op: Op, opened: Opened, allowed: Allowed, simulated: bool, scales: bool
) -> tuple[OpScheme, ...]:
    """Return what an op may take, the backend's best first and float last.

    Raises:
        ConfigError: If the rules leave it nothing that the backend can carry out, and name it by
            its mode, weight or input.
    """
    if allowed.keep_float:
        return (FLOAT,)
    scales = scales or allowed.names_scales
    offers = opened.capability.for_op(op, simulated=simulated, scales=scales)
    kept = [s for s in offers if not s.is_float and allowed.admits(s)]
    asks_for_float = allowed.mode == ("float",)
    offers_something = len(offers) > 1 and not allowed.by_name
    if allowed.restricts and offers_something and not kept and not asks_for_float:
        shown = "; ".join(str(s) for s in offers)
        raise ConfigError(
            f"the rules leave op {op.name!r} ({op.type}) nothing that {opened.name} can carry out. "
            f"It can: {shown}{_more_simulated(op, opened, allowed)}"
        )
    return (*dict.fromkeys(_with_parts(kept, allowed)), FLOAT)


def _without_their_scheme(
    opened: Opened,
    allowed: Mapping[str, Allowed],
    offered: Mapping[str, tuple[OpScheme, ...]],
) -> Iterator[str]:
    """Yield, for each scheme by name, which ops of its rules cannot take it.

    Raises:
        ConfigError: If none can.
    """
    asked: dict[str, list[str]] = {}
    for name, said in allowed.items():
        can_be_quantized = len(opened.capability.for_op(opened.view.by_name[name])) > 1
        names_codes = said.mode != ("float",) and not said.keep_float
        if said.by_name and names_codes and can_be_quantized:
            asked.setdefault(said.by_name, []).append(name)
    for scheme, names in asked.items():
        left = [name for name in names if len(offered[name]) == 1]
        if len(left) == len(names):
            op = opened.view.by_name[names[0]]
            shown = "; ".join(map(str, opened.capability.for_op(op)))
            raise ConfigError(
                f"{opened.name} can carry out {scheme!r} for no op that its rule names"
                f"{_more_simulated(op, opened, allowed[op.name])}. {op.name!r} ({op.type}) can: "
                f"{shown}"
            )
        if left:
            yield (
                f"{len(left)} of {len(names)} ops cannot take {scheme} and stay in float: "
                f"{', '.join(left[:_SHOWN])}{', ...' if len(left) > _SHOWN else ''}"
            )


def _more_simulated(op: Op, opened: Opened, allowed: Allowed) -> str:
    """Return that the backend simulates what the rules ask for; empty if it does not."""
    everything = opened.capability.for_op(
        op, simulated=True, scales=allowed.names_scales
    )
    asked = [s for s in everything if not s.is_float and allowed.admits(s)]
    if not asked:
        return ""
    return f". It only simulates [{asked[0]}]: simulated = true admits that"


def _with_parts(schemes: Iterable[OpScheme], allowed: Allowed) -> Iterator[OpScheme]:
    """Yield schemes with each range, algorithm and calibrator that the rules name."""
    for scheme in schemes:
        own = (scheme.weight, scheme.algorithms, scheme.calibrator)
        weights: tuple[QuantSpec | None, ...] = (scheme.weight,)
        algorithms: tuple[Chain, ...] = (scheme.algorithms,)
        calibrators: tuple[PartChoice, ...] = (scheme.calibrator,)
        if scheme.weight and allowed.weight:
            weights = allowed.weight.variants(scheme.weight)
        if scheme.weight and allowed.algorithm:
            algorithms = tuple(as_chain(named) for named in allowed.algorithm)
        if scheme.mode == "static" and allowed.calibrator:
            calibrators = allowed.calibrator
        for weight, chain, calibrator in product(weights, algorithms, calibrators):
            if (weight, chain, calibrator) == own:
                yield scheme
            else:
                first, *refining = chain
                yield scheme.variant(
                    weight=weight,
                    algorithm=first,
                    refined_by=tuple(refining),
                    calibrator=calibrator,
                )
