"""Formats: what the first word of a scheme says of weights and inputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from octavo.core.errors import ConfigError, nearest, shown
from octavo.core.values.scheme import Mode, OpScheme, Scalar
from octavo.core.values.settings import checked

from ..specs import SpecRule
from .words import CASTS, INTEGER, is_called, is_dtype, name_of, rule_of, word_of_spec
from .written import Term

USUAL: tuple[str, ...] = (
    "int8-static",
    "int8-dynamic",
    "int8-weight-only",
    "int4-weight-only",
    "int3-weight-only",
    "int2-weight-only",
    "nf4-weight-only",
    "fp8-weight-only",
    "fp8-dynamic",
    "mxfp4-weight-only",
    "w4a8-static",
    "w4a8-dynamic",
    "w8a16-static",
    "bfloat16",
    "float16",
    "float",
)
"""Formats that lists show whether or not a backend offers them; the grammar takes any width."""

_FLOATS = ("float", "fp32", "float32")
_MODES: Mapping[str, Mode] = {
    "static": "static",
    "dynamic": "dynamic",
    "weight-only": "weight_only",
}
_SUFFIX = re.compile(r"(?P<dtype>.+?)-(?P<mode>static|dynamic|weight-only)")
_WIDTHS = re.compile(
    r"w(?P<weight>\d+)(?:a(?P<input>\d+))?(?:-(?P<mode>static|dynamic|weight-only))?"
)
_MIXED = re.compile(r"w-(?P<weight>.+?)-a-(?P<input>.+?)-(?P<mode>static|dynamic)")
_WIDE_INPUT = 16
"""From this width on, ``wNaM`` without a mode means inputs in floating point (w4a16)."""

_ANY = SpecRule()
"""What a format without options says of specs: nothing."""

_OPTIONS = ("group", "granularity", "symmetric", "scale_dtype", "reduce_range", "dtype")
_OF_INPUT = ("granularity", "symmetric", "dtype")


@dataclass(frozen=True, slots=True)
class Format:
    """What weights and inputs become.

    Attributes:
        name: As lists and messages write it: ``int8-static``, ``w4a8-dynamic``, ``bfloat16``.
        mode: How it is carried out.
        weight: What weights are, in a word: ``int4`` (signed or not), ``nf4``, ``fp8``; empty for
            ``float``.
        input: What inputs are; empty where they stay float.
        of_weight: What its options say of the weight's spec.
        of_input: The same of the input's.
    """

    name: str
    mode: Mode
    weight: str = ""
    input: str = ""
    of_weight: SpecRule = _ANY
    of_input: SpecRule = _ANY

    @property
    def names_scales(self) -> bool:
        """Whether its options say what scales of weights are stored as."""
        return self.of_weight.names_scales

    def choices(self, kind: str, offered: Iterable[OpScheme]) -> tuple[OpScheme, ...]:
        """Return which of an op's schemes this format takes, in the order in which they come.

        Args:
            kind: The op's type.
            offered: Schemes, with the default algorithm and calibrator.
        """
        offered = tuple(offered)
        fitting = [s for s in offered if self._fits(s)]
        if kind == "embedding" and self.mode in ("static", "dynamic"):
            # A table has no activation to quantize: its integers are weight-only.
            fitting += [s for s in offered if self._is_stored_form(s)]
        made = (variant for scheme in fitting for variant in self._variants(scheme))
        return tuple(dict.fromkeys(made))

    def said(self, kind: str) -> dict[str, Any]:
        """Return what a rule of this format says of an op, by setting: mode, weight, input.

        Args:
            kind: The op's type.
        """
        if self.mode == "float":
            return {"mode": ("float",), "weight": None, "input": None}
        weight = rule_of(self.weight, self.of_weight)
        is_table = kind == "embedding" and self.mode in ("static", "dynamic")
        if is_table and INTEGER.fullmatch(self.weight):
            # As in choices(): its integers are weight-only.
            return {"mode": ("weight_only",), "weight": weight, "input": None}
        source = rule_of(self.input, self.of_input) if self.input else None
        return {"mode": (self.mode,), "weight": weight, "input": source}

    def _fits(self, scheme: OpScheme) -> bool:
        if scheme.mode != self.mode:
            return False
        # A scheme without a weight (of an op that has none) is told by its input.
        return self._takes_weight(scheme) and self._takes_input(scheme)

    def _takes_weight(self, scheme: OpScheme) -> bool:
        spec = scheme.weight
        if spec is None:
            return True
        return is_called(self.weight, spec.dtype) and self.of_weight.admits(spec)

    def _takes_input(self, scheme: OpScheme) -> bool:
        spec = scheme.input
        if spec is None or not self.input:
            return spec is None and not self.input
        return is_called(self.input, spec.dtype) and self.of_input.admits(spec)

    def _is_stored_form(self, scheme: OpScheme) -> bool:
        is_integer = INTEGER.fullmatch(self.weight) is not None
        if not is_integer or scheme.mode != "weight_only":
            return False
        return self._takes_weight(scheme)

    def _variants(self, scheme: OpScheme) -> Iterable[OpScheme]:
        """Yield a scheme with each range of its weight that the options ask for."""
        if scheme.weight is None or self.of_weight.reduce_range is None:
            yield scheme
            return
        for weight in self.of_weight.variants(scheme.weight):
            yield scheme.variant(weight=weight)


FLOAT_FORMAT = Format("float", "float")


def find_format(term: Term) -> Format | None:
    """Return the format that a term names; None where it is no format.

    Raises:
        ConfigError: If it is one that contradicts itself, or an option of it is unknown or
            malformed.
    """
    found = _of_name(term.name) if not term.family else None
    return None if found is None else _with_options(found, term)


def format_of(scheme: OpScheme) -> str:
    """Return the name of the format that a scheme is of: what :func:`find_format` reads back."""
    if scheme.is_float:
        return FLOAT_FORMAT.name
    weight, source = scheme.weight, scheme.input
    if scheme.mode == "cast" and weight is not None:
        return weight.dtype
    width = word_of_spec(weight or source)
    if source is None:
        return f"{width}-weight-only"
    return name_of(width, word_of_spec(source), scheme.mode)


def _of_name(name: str) -> Format | None:
    if name in _FLOATS:
        return FLOAT_FORMAT
    if name in CASTS:
        return Format(CASTS[name], "cast", CASTS[name])
    if widths := _WIDTHS.fullmatch(name):
        return _of_widths(name, widths)
    if mixed := _MIXED.fullmatch(name):
        return _of_two_dtypes(name, mixed)
    suffixed = _SUFFIX.fullmatch(name)
    if suffixed is None or not is_dtype(suffixed["dtype"]):
        return None
    word, mode = suffixed["dtype"], _MODES[suffixed["mode"]]
    source = "" if mode == "weight_only" else word
    return Format(name, mode, word, source)


def _of_two_dtypes(name: str, found: re.Match[str]) -> Format | None:
    """Return a format whose weights and inputs are no integers of two widths."""
    weight, source = found["weight"], found["input"]
    if not (is_dtype(weight) and is_dtype(source)):
        return None
    return Format(name, _MODES[found["mode"]], weight, source)


def _of_widths(name: str, found: re.Match[str]) -> Format:
    """Return a format of two integer widths.

    Raises:
        ConfigError: If its mode is missing, or contradicts the width of inputs.
    """
    weight = f"int{found['weight']}"
    if not is_dtype(weight):
        raise ConfigError(f"scheme {name!r}: weights have 2 to 8 bits, or 16")
    width, mode = int(found["input"] or _WIDE_INPUT), found["mode"]
    stays_float = width >= _WIDE_INPUT and mode is None
    if stays_float or mode == "weight-only":
        if width < _WIDE_INPUT:
            raise ConfigError(
                f"scheme {name!r} contradicts itself: weight-only keeps inputs in floating point; "
                f"write {weight}-weight-only, or w{found['weight']}a{width}-dynamic"
            )
        return Format(f"{weight}-weight-only", "weight_only", weight)
    base = f"w{found['weight']}a{width}"
    if mode is None:
        raise ConfigError(
            f"scheme {name!r} does not say when ranges of inputs are found: {base}-static (from "
            f"calibration data) or {base}-dynamic (at each call)"
        )
    source = f"int{width}"
    if not is_dtype(source):
        raise ConfigError(f"scheme {name!r}: inputs have 2 to 8 bits, or 16")
    return Format(name_of(weight, source, mode), _MODES[mode], weight, source)


def _with_options(found: Format, term: Term) -> Format:
    """Return a format whose specs are those that its options name.

    Raises:
        ConfigError: If an option is unknown (with the nearest name) or malformed.
    """
    if not term.options:
        return found
    of_input = {f"input_{name}": name for name in _OF_INPUT} if found.input else {}
    known = [*(_OPTIONS if found.mode not in ("float", "cast") else ()), *of_input]
    weight: dict[str, Any] = {}
    source: dict[str, Any] = {}
    for name, value in term.options:
        if name not in known:
            hint = nearest(name, known) if known else f"; {found.name} has no options"
            raise ConfigError(f"format {found.name!r} has no option {name!r}{hint}")
        if name in of_input:
            source[of_input[name]] = value
        elif name == "group":
            weight.setdefault("granularity", _group(value, term))
        else:
            weight[name] = value
    named = dict(term.options)
    if "group" in named and "granularity" in named:
        raise ConfigError(
            f"format {str(term)!r}: group=N is granularity=group:N; give one of them"
        )
    return Format(
        f"{found.name}{str(term).removeprefix(term.name)}",
        found.mode,
        found.weight,
        found.input,
        checked(SpecRule, weight, f"format {found.name!r}"),
        checked(SpecRule, source, f"inputs of format {found.name!r}"),
    )


def _group(value: Scalar, term: Term) -> str:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not is_count:
        raise ConfigError(
            f"format {str(term)!r}: group is how many neighbours share a scale, a number such as "
            f"32, not {shown(value)}"
        )
    return f"group:{value}"


OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "group": "neighbours of a weight's row that share a scale: 32",
        "granularity": "what shares a scale of the weight: tensor, channel, group:N",
        "symmetric": "whether the weight's zero point is 0",
        "dtype": "exactly what codes are: uint4 and not int4",
        "scale_dtype": "what scales are stored as: float16, bfloat16, float32, or uint8 for double "
        "quantization",
        "reduce_range": "one bit of an 8-bit weight given up, where products would saturate",
        "input_granularity": "what shares a scale of the input: tensor, token",
        "input_symmetric": "whether the input's zero point is 0",
        "input_dtype": "exactly what the input's codes are",
    }
)
"""Option of a format -> what it says."""

__all__ = [
    "FLOAT_FORMAT",
    "OPTIONS",
    "USUAL",
    "Format",
    "find_format",
    "format_of",
]
