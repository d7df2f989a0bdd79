"""What the user says of ops: which may be quantized, and what they may take."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from octavo.core.contract.adapter import Opened
from octavo.core.values.graph import Op
from octavo.core.values.recipe import adapter_of
from octavo.core.values.scheme import Frozen, Mode, OpScheme, PartChoice

from .alternatives import Alternative, AlternativeTable, Chain, PartTable
from .grammar.named import NamedScheme
from .grammar.written import read
from .specs import Names, SpecRule, or_one

SETTINGS = ("scheme", "mode", "weight", "input", "algorithm", "calibrator")
"""What a rule may say of the ops that it names."""

LIFTS = ("scheme", "mode", "weight")
"""What says that ops are quantized after all.

An algorithm or a calibrator says how, of those that are.
"""


class Rule(Frozen):
    """What some ops may take. The later rule wins, field by field.

    Attributes:
        ops: Names or patterns (``encoder.layer.0.*``); None for any.
        types: Op types (``linear``, ``conv``); None for any.
        backends: Only for these backends; None for any. A plain name is all of its settings
            that are searched (``onnx``), and ``onnx(threads=1)`` is one of them.
        keep: ``float`` leaves the ops alone, until a later rule says scheme, mode, weight or
            keep.
        scheme: A scheme by name, ``format[+method...]``: it says mode, weight, input, algorithm and
            calibrator at once. Ops that cannot take the format stay in float, and a note says so.
        mode: Allowed modes.
        weight: Allowed weight specs.
        input: Allowed input specs.
        algorithm: Weight algorithms to try, each with its settings; one that is a list is a chain:
            ``[["awq", "gptq"], "rtn"]`` tries gptq on what awq made, and rtn.
        calibrator: Calibrators to try, each with its settings.
    """

    ops: Names = None
    types: Names = None
    backends: Names = None
    keep: Literal["float"] | None = None
    scheme: str | None = None
    mode: Annotated[tuple[Mode, ...] | None, or_one(Mode)] = None
    weight: SpecRule | None = None
    input: SpecRule | None = None
    algorithm: Annotated[
        tuple[Alternative, ...] | None, or_one(PartTable, AlternativeTable)
    ] = Field(default=None, min_length=1)
    calibrator: Annotated[tuple[PartChoice, ...] | None, or_one(PartTable)] = Field(
        default=None, min_length=1
    )

    @model_validator(mode="after")
    def _kept_ops_take_nothing(self) -> Rule:
        if self.keep is not None and self.said:
            raise ValueError(
                f"keep = 'float' leaves its ops alone, and {', '.join(self.said)} beside it would "
                "be dropped: write two rules, or leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _a_scheme_says_it_all(self) -> Rule:
        beside = [name for name in self.said if name != "scheme"]
        if self.scheme is not None and beside:
            raise ValueError(
                f"scheme = {self.scheme!r} says mode, weight, input, algorithm and calibrator, and "
                f"here {', '.join(beside)} would say it again: leave one of them out, or write a "
                "later rule"
            )
        return self

    @field_validator("scheme")
    @classmethod
    def _scheme_can_be_read(cls, value: str | None) -> str | None:
        if value is not None:
            read(value)
        return value

    @model_serializer(mode="wrap")
    def _without_an_empty_scheme(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        # Rules are compared with those of runs from before there were names.
        if found.get("scheme") is None:
            found.pop("scheme", None)
        return found

    @field_validator(
        "weight", "input", mode="before", json_schema_input_type=str | SpecRule | None
    )
    @classmethod
    def _name_is_a_dtype(cls, raw: Any) -> Any:
        return {"dtype": raw} if isinstance(raw, str) else raw

    def matches(self, op: Op, backend: str) -> bool:
        """Return whether this rule speaks about ``op``."""
        names = (backend, adapter_of(backend))
        if self.backends is not None and not set(names) & set(self.backends):
            return False
        if self.types is not None and op.type not in self.types:
            return False
        # A name may hold what patterns mean something by, so it is compared as it is first.
        return self.ops is None or any(
            op.name == pattern or fnmatch.fnmatchcase(op.name, pattern)
            for pattern in self.ops
        )

    @property
    def said(self) -> dict[str, Any]:
        """What the rule says of its ops, by setting."""
        values = {f: getattr(self, f) for f in SETTINGS}
        return {f: value for f, value in values.items() if value is not None}

    @property
    def lifts(self) -> bool:
        """True if its ops are quantized after all, where an earlier rule keeps them in float."""
        return any(f in self.said for f in LIFTS)


@dataclass(frozen=True)
class Allowed:
    """What all rules together say of one op; None where they say nothing.

    Attributes:
        keep_float: The op stays float.
        mode: Allowed modes.
        weight: Allowed weight specs.
        input: Allowed input specs.
        algorithm: Weight algorithms to try.
        calibrator: Calibrators to try.
        by_name: The scheme that says mode, weight and input, where a rule's scheme does: then an op
            that cannot take it stays in float.
    """

    keep_float: bool = False
    mode: tuple[Mode, ...] | None = None
    weight: SpecRule | None = None
    input: SpecRule | None = None
    algorithm: tuple[PartChoice | Chain, ...] | None = None
    calibrator: tuple[PartChoice, ...] | None = None
    by_name: str = ""

    @property
    def restricts(self) -> bool:
        """True if some schemes may be ruled out."""
        return any(said is not None for said in (self.mode, self.weight, self.input))

    @property
    def names_scales(self) -> bool:
        """True if they say what scales of weights are stored as."""
        return self.weight is not None and self.weight.names_scales

    def admits(self, scheme: OpScheme) -> bool:
        """Return whether an op may take a scheme."""
        if self.mode is not None and scheme.mode not in self.mode:
            return False
        for rule, spec in ((self.weight, scheme.weight), (self.input, scheme.input)):
            if rule is not None and spec is not None and not rule.admits(spec):
                return False
        return True


def merged(
    op: Op,
    backend: str,
    rules: Iterable[Rule],
    named: Mapping[str, NamedScheme] = MappingProxyType({}),
) -> Allowed:
    """Return what the rules say of an op: the later rule wins, field by field.

    Args:
        op: The op.
        backend: Where it would run.
        rules: In order.
        named: A rule's scheme as it is written -> what it stands for.
    """
    found = Allowed()
    for rule in rules:
        if rule.matches(op, backend):
            keeps = rule.keep is not None or (found.keep_float and not rule.lifts)
            said = rule.said
            if rule.scheme is not None:
                said = {**named[rule.scheme].said(op.type), "by_name": rule.scheme}
            elif rule.lifts or rule.input is not None:
                said = {**said, "by_name": ""}
            found = replace(found, keep_float=keeps, **said)
    return found


def names_schemes(op: Op, opened: Opened, rules: Iterable[Rule]) -> bool:
    """Return whether a rule names the mode, weight or input of an op's schemes.

    Then the user asked for them.
    """
    matching = (rule for rule in rules if rule.matches(op, opened.name))
    return any(r.scheme or r.mode or r.weight or r.input for r in matching)


def rules_without_effect(opened: Opened, rules: Sequence[Rule]) -> list[str]:
    """Say which rules speak only of ops that an earlier one keeps in float."""
    found = []
    kept: set[str] = set()
    for number, rule in enumerate(rules, 1):
        names = {op.name for op in opened.view.ops if rule.matches(op, opened.name)}
        if rule.keep:
            kept |= names
        elif rule.lifts:
            kept -= names
        elif names and names <= kept and rule.said:
            found.append(
                f"rule {number} changes nothing: an earlier rule keeps its ops in float, and "
                f"{', '.join(rule.said)} does not lift that (say scheme, mode or weight)"
            )
    return found
