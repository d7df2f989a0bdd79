"""Capability x model x the user's rules -> a tuning space."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from octavo.core.contract.adapter import Opened
from octavo.core.errors import ConfigError, nearest
from octavo.core.numerics.affine import is_integer
from octavo.core.quantizing.float_reasons import why_fixed
from octavo.core.values.graph import Op
from octavo.core.values.scheme import FLOAT, Frozen, Mode, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace
from octavo.core.values.units import find_units

PartTable = str | dict[str, Any]


def _listed(raw: Any) -> Any:
    return raw if raw is None or isinstance(raw, (list, tuple)) else (raw,)


class SpecRule(Frozen):
    """Allowed values of a QuantSpec's fields; what is left out is free."""

    dtype: tuple[str, ...] | None = None
    granularity: tuple[str, ...] | None = None
    symmetric: tuple[bool, ...] | None = None
    reduce_range: tuple[bool, ...] | None = None
    scale_dtype: tuple[str | None, ...] | None = None

    @field_validator(
        "dtype",
        "granularity",
        "scale_dtype",
        mode="before",
        json_schema_input_type=str | list[str] | None,
    )
    @classmethod
    def _one_name_is_a_list(cls, raw: Any) -> Any:
        return _listed(raw)

    @field_validator(
        "symmetric", "reduce_range", mode="before", json_schema_input_type=bool | list[bool] | None
    )
    @classmethod
    def _one_flag_is_a_list(cls, raw: Any) -> Any:
        return _listed(raw)

    def admits(self, spec: QuantSpec) -> bool:
        """True if every field that this rule names is among the allowed ones."""
        # A reduced range is no offer of its own: whoever asks for it gets it of every 8-bit weight, see _variants.
        fields = (f for f in type(self).model_fields if f != "reduce_range")
        named = ((f, getattr(self, f)) for f in fields)
        return all(allowed is None or getattr(spec, f) in allowed for f, allowed in named)

    def variants(self, spec: QuantSpec) -> tuple[QuantSpec, ...]:
        """Return the specs that this rule makes of an admitted 8-bit weight: over the whole range, a reduced one, or both."""
        if self.reduce_range is None or spec.bits != 8 or not is_integer(spec):
            return (spec,)
        made = {False: spec, True: spec.reduced()}
        return tuple(made[wanted] for wanted in dict.fromkeys(self.reduce_range))


SETTINGS = ("mode", "weight", "input", "algorithm", "calibrator")
"""What a rule may say of the ops that it names."""

LIFTS = ("mode", "weight")
"""What says that ops are quantized after all. An algorithm or a calibrator says how, of those that are."""


class Rule(Frozen):
    """What some ops may take. The later rule wins, field by field.

    Attributes:
        ops: Names or patterns (``encoder.layer.0.*``); None for any.
        types: Op types (``linear``, ``conv``); None for any.
        backends: Only for these backends; None for any.
        keep: ``float`` leaves the ops alone, until a later rule says mode, weight or keep.
        mode: Allowed modes.
        weight: Allowed weight specs.
        input: Allowed input specs.
        algorithm: Weight algorithms to try, each with its settings.
        calibrator: Calibrators to try, each with its settings.
    """

    ops: tuple[str, ...] | None = None
    types: tuple[str, ...] | None = None
    backends: tuple[str, ...] | None = None
    keep: Literal["float"] | None = None
    mode: tuple[Mode, ...] | None = None
    weight: SpecRule | None = None
    input: SpecRule | None = None
    algorithm: tuple[PartChoice, ...] | None = Field(default=None, min_length=1)
    calibrator: tuple[PartChoice, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _kept_ops_take_nothing(self) -> Rule:
        beside = [f for f in SETTINGS if self.keep is not None and getattr(self, f) is not None]
        if beside:
            raise ValueError(
                f"keep = 'float' leaves its ops alone, and {', '.join(beside)} beside it would be "
                "dropped: write two rules, or leave one of them out"
            )
        return self

    @field_validator(
        "ops", "types", "backends", mode="before", json_schema_input_type=str | list[str] | None
    )
    @classmethod
    def _one_name_is_a_list(cls, raw: Any) -> Any:
        return _listed(raw)

    @field_validator("mode", mode="before", json_schema_input_type=Mode | list[Mode] | None)
    @classmethod
    def _one_mode_is_a_list(cls, raw: Any) -> Any:
        return _listed(raw)

    @field_validator(
        "algorithm",
        "calibrator",
        mode="before",
        json_schema_input_type=PartTable | list[PartTable] | None,
    )
    @classmethod
    def _one_part_is_a_list(cls, raw: Any) -> Any:
        return _listed(raw)

    @field_validator("weight", "input", mode="before", json_schema_input_type=str | SpecRule | None)
    @classmethod
    def _name_is_a_dtype(cls, raw: Any) -> Any:
        return {"dtype": raw} if isinstance(raw, str) else raw

    def matches(self, op: Op, backend: str) -> bool:
        """True if this rule speaks about ``op``."""
        return (
            (self.backends is None or backend in self.backends)
            and (self.types is None or op.type in self.types)
            and (
                self.ops is None
                or any(op.name == p or fnmatch.fnmatchcase(op.name, p) for p in self.ops)
            )
        )


def build_spaces(
    opened: Sequence[Opened],
    rules: Sequence[Rule],
    *,
    transforms: Sequence[PartChoice] = (),
    suggested: Mapping[str, PartChoice] = MappingProxyType({}),
    simulated: bool = False,
) -> dict[str, TuningSpace]:
    """Build one space for each backend.

    Args:
        opened: The backends.
        rules: The user's.
        transforms: What the user names; a backend that cannot carry them out says so.
        suggested: Op type -> what a strategy would like to compare, where it can be carried out and there is something to gain.
        simulated: Also offer schemes that are only simulated.

    Raises:
        ConfigError: If a rule matches nothing on any backend, or leaves an op nothing that the backend can carry out.
    """
    for index, rule in enumerate(rules):
        if not any(rule.matches(op, o.name) for o in opened for op in o.view.ops):
            _refuse(index, rule, opened)
    return {
        o.name: build_space(
            o, rules, transforms=transforms, suggested=suggested, simulated=simulated
        )
        for o in opened
    }


def build_space(
    opened: Opened,
    rules: Sequence[Rule] = (),
    *,
    transforms: Sequence[PartChoice] = (),
    suggested: Mapping[str, PartChoice] = MappingProxyType({}),
    simulated: bool = False,
) -> TuningSpace:
    """Build the space of one backend; see :func:`build_spaces`."""
    notes = list(opened.view.notes)
    choices = {op.name: _choices(op, opened, rules, simulated) for op in opened.view.ops}
    alternatives: list[tuple[PartChoice, ...]] = [()]
    if transforms and "rescale" not in opened.capability.features:
        notes.append(
            f"{opened.name} does not offer rescale: transforms {', '.join(map(str, transforms))} are left out"
        )
    elif transforms:
        alternatives += [(t,) for t in transforms]
    else:
        alternatives += dict.fromkeys(
            (t,) for kind, t in suggested.items() if _could_gain(kind, opened, choices)
        )
    notes += _without_effect(opened, rules)
    units, remarks = find_units(opened.view, choices)
    return TuningSpace(opened.name, units, tuple(alternatives), (*notes, *remarks))


def _could_gain(kind: str, opened: Opened, choices: Mapping[str, tuple[OpScheme, ...]]) -> bool:
    """True if channels can be rescaled in front of an op of that type whose activations may be quantized."""
    members = {
        m
        for g in opened.view.groups
        if g.kind == "rescale"
        for m in g.members
        if opened.view.by_name[m].type == kind
    }
    return "rescale" in opened.capability.features and any(
        s.input is not None for m in members for s in choices[m]
    )


def fixed_ops(opened: Opened, space: TuningSpace) -> dict[str, str]:
    """Return op -> why it stays float whatever the recipe, for the ops of a space that have no choice."""
    names = [name for unit in space.units if not unit.tunable for name in unit.ops]
    return {name: why_fixed(opened.view.by_name[name], opened) for name in names}


def names_schemes(op: Op, opened: Opened, rules: Iterable[Rule]) -> bool:
    """Return whether a rule names the mode, weight or input of an op's schemes: then the user asked for them."""
    matching = (rule for rule in rules if rule.matches(op, opened.name))
    return any(rule.mode or rule.weight or rule.input for rule in matching)


def _refuse(index: int, rule: Rule, opened: Sequence[Opened]) -> None:
    ops = [op for o in opened for op in o.view.ops]
    for pattern in rule.ops or ():
        if not any(fnmatch.fnmatchcase(op.name, pattern) for op in ops):
            raise ConfigError(
                f"rule {index + 1} names op {pattern!r}, which matches nothing{nearest(pattern.rstrip('.*'), [op.name for op in ops])}"
            )
    for kind in rule.types or ():
        if kind not in {op.type for op in ops}:
            raise ConfigError(
                f"rule {index + 1} names op type {kind!r}, which this model does not have{nearest(kind, [op.type for op in ops])}"
            )
    for backend in rule.backends or ():
        if backend not in {o.name for o in opened}:
            raise ConfigError(
                f"rule {index + 1} names backend {backend!r}, which this run does not use{nearest(backend, [o.name for o in opened])}"
            )
    raise ConfigError(
        f"rule {index + 1} matches no op: no op has both the names {rule.ops} and the types {rule.types}"
    )


def _choices(
    op: Op, opened: Opened, rules: Sequence[Rule], simulated: bool
) -> tuple[OpScheme, ...]:
    merged: dict[str, Any] = {}
    for rule in rules:
        if not rule.matches(op, opened.name):
            continue
        said = {f: getattr(rule, f) for f in SETTINGS if getattr(rule, f) is not None}
        if rule.keep:
            merged["keep"] = rule.keep
        elif any(f in said for f in LIFTS):
            merged.pop("keep", None)
        merged.update(said)
    if merged.get("keep") == "float":
        return (FLOAT,)
    offers = opened.capability.for_op(op, simulated=simulated)
    kept = [s for s in offers if not s.is_float and _admits(merged, s)]
    restricts = any(k in merged for k in ("mode", "weight", "input"))
    if restricts and not kept and len(offers) > 1 and merged.get("mode") != ("float",):
        shown = "; ".join(str(s) for s in offers)
        raise ConfigError(
            f"the rules leave op {op.name!r} ({op.type}) nothing that {opened.name} can carry out. It can: {shown}"
        )
    return (*dict.fromkeys(v for s in kept for v in _variants(s, merged)), FLOAT)


def _without_effect(opened: Opened, rules: Sequence[Rule]) -> list[str]:
    """Say which rules speak only of ops that an earlier one keeps in float."""
    found = []
    kept: set[str] = set()
    for number, rule in enumerate(rules, 1):
        names = {op.name for op in opened.view.ops if rule.matches(op, opened.name)}
        said = [f for f in SETTINGS if getattr(rule, f) is not None]
        if rule.keep:
            kept |= names
        elif any(f in said for f in LIFTS):
            kept -= names
        elif names and names <= kept and said:
            found.append(
                f"rule {number} changes nothing: an earlier rule keeps its ops in float, and "
                f"{', '.join(said)} does not lift that (say mode or weight)"
            )
    return found


def _admits(merged: dict[str, Any], scheme: OpScheme) -> bool:
    mode, weight, inputs = merged.get("mode"), merged.get("weight"), merged.get("input")
    return (
        (mode is None or scheme.mode in mode)
        and (weight is None or scheme.weight is None or weight.admits(scheme.weight))
        and (inputs is None or scheme.input is None or inputs.admits(scheme.input))
    )


def _variants(scheme: OpScheme, merged: dict[str, Any]) -> Iterable[OpScheme]:
    algorithms = (
        merged.get("algorithm", (scheme.algorithm,)) if scheme.weight else (scheme.algorithm,)
    )
    calibrators = (
        merged.get("calibrator", (scheme.calibrator,))
        if scheme.mode == "static"
        else (scheme.calibrator,)
    )
    rule = merged.get("weight")
    weights = rule.variants(scheme.weight) if rule and scheme.weight else (scheme.weight,)
    for weight, algorithm, calibrator in product(weights, algorithms, calibrators):
        said = (weight, algorithm, calibrator)
        if said == (scheme.weight, scheme.algorithm, scheme.calibrator):
            yield scheme
        else:
            yield scheme.variant(weight=weight, algorithm=algorithm, calibrator=calibrator)
