"""A scheme whose names are found: what it makes of a model's ops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.recovery import DISTILLATION, after_rounding
from octavo.core.errors import ConfigError, nearest
from octavo.core.values.scheme import MINMAX, RTN, OpScheme, PartChoice

from . import aliases, formats
from .aliases import BIAS_CORRECTION
from .checks import Checks
from .formats import Format, find_format
from .methods import Family, Method, find_methods, method_names
from .written import Term, Written, read


@dataclass(frozen=True)
class NamedScheme:
    """What a text such as ``int8-static+smoothquant+gptq`` stands for.

    Attributes:
        written: The text; ``str`` of the scheme is it.
        format: What weights and inputs become.
        methods: What is done beside it, in the order in which it was written.
        bias_correction: Whether biases make up for the mean error of weights.
        needs_data: Whether it cannot be carried out without calibration data.
        remarks: What of the methods has nothing to do here, and why.
    """

    written: Written
    format: Format
    methods: tuple[Method, ...] = ()
    bias_correction: bool = False
    needs_data: bool = False
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.written)

    @property
    def transforms(self) -> tuple[PartChoice, ...]:
        """Model-wide rescalings, in order."""
        return self._of("transform")

    @property
    def algorithms(self) -> tuple[PartChoice, ...]:
        """What rounds weights: each goes on from the one before it; () for the default."""
        return self._of("algorithm")

    @property
    def recovery(self) -> tuple[PartChoice, ...]:
        """What is learned after quantization, in order.

        Distillation after an algorithm that chose the codes together keeps them, where no setting
        says otherwise.
        """
        steps = self._of("recovery")
        chosen_together = any(step.kind != RTN.kind for step in self.algorithms)
        if not chosen_together:
            return steps
        return tuple(
            after_rounding(step) if step.kind == DISTILLATION else step
            for step in steps
        )

    @property
    def calibrator(self) -> PartChoice:
        """How observed inputs become a range, where that is done in calibration."""
        named = self._of("calibrator")
        if named:
            return named[0]
        brought = [method.brings for method in self.methods if method.brings]
        return PartChoice(kind=brought[0]) if brought else MINMAX

    def _of(self, family: Family) -> tuple[PartChoice, ...]:
        return tuple(m.choice for m in self.methods if m.family == family)

    @cached_property
    def _rounding(self) -> tuple[PartChoice, ...]:
        """The weight algorithms with what bias correction changes of the last one."""
        chain = self.algorithms or (RTN,)
        if not self.bias_correction:
            return chain
        *before, last = chain
        options = {**dict(last.options), "bias_correction": True}
        corrected = PartChoice(kind=last.kind, options=tuple(sorted(options.items())))
        return (*before, corrected)

    def choices(self, kind: str, offered: Iterable[OpScheme]) -> tuple[OpScheme, ...]:
        """Return what an op may take under this scheme, the one to take first first.

        Args:
            kind: The op's type.
            offered: What its backend offers, with the default algorithm and calibrator.

        Returns:
            Those that are of the format, with the scheme's algorithms and calibrator.
        """
        return tuple(map(self._with_parts, self.format.choices(kind, offered)))

    def said(self, kind: str) -> dict[str, Any]:
        """Return what a rule that names this scheme says of an op, by setting.

        Args:
            kind: The op's type.
        """
        parts = {"algorithm": (self._rounding,), "calibrator": (self.calibrator,)}
        return {**self.format.said(kind), **parts}

    def _with_parts(self, scheme: OpScheme) -> OpScheme:
        changes: dict[str, object] = {}
        if scheme.weight is not None and scheme.mode != "cast":
            first, *further = self._rounding
            changes["algorithm"] = first
            if further:
                changes["refined_by"] = tuple(further)
        if scheme.mode == "static":
            changes["calibrator"] = self.calibrator
        return scheme.variant(**changes) if changes else scheme


def read_named(text: str, host: PluginHost) -> NamedScheme:
    """Read a scheme: ``format[+method...]``, or a plain name that stands for one.

    Args:
        text: As it was given, in any case, with hyphens or underscores.
        host: Knows the methods.

    Raises:
        ConfigError: If the text cannot be read; if a format or method is unknown (with the nearest
            names), stands twice, stands in the wrong place, or has nothing to do in that format; if
            an option is unknown or malformed.
    """
    written = read(text)
    terms = [_meant(term, aliases.METHODS) for term in written.terms]
    head = _meant(written.terms[0], aliases.FORMATS)
    found = find_format(head)
    if found is None:
        found = _implied(terms[0], terms[1:], text, host)
    else:
        terms = terms[1:]
    rest = [term for term in terms if not _is_bias_correction(term)]
    corrections = len(terms) - len(rest)
    if corrections > 1:
        raise ConfigError(f"scheme {text!r}: {BIAS_CORRECTION} stands twice")
    methods: list[Method] = []
    for term in rest:
        methods += _methods(term, text, host)
    checks = Checks(text, found, tuple(methods), host)
    checks.run(bias_correction=corrections == 1)
    needs_data = found.mode == "static" or corrections == 1
    needs_data = needs_data or any(m.needs_data(host) for m in methods)
    return NamedScheme(
        written,
        found,
        tuple(methods),
        corrections == 1,
        needs_data,
        tuple(checks.remarks()),
    )


def is_scheme(text: str, host: PluginHost) -> bool:
    """Return whether a text begins as a scheme does: with a format, a plain name or a method.

    What follows may be wrong: then it is a scheme with a mistake, and no path.
    """
    try:
        first = read(text.partition("+")[0]).terms[0]
    except ConfigError:
        return False
    if first.family or first.name in aliases.FORMATS:
        return True
    try:
        found = find_format(first)
    except ConfigError:
        return True
    return found is not None or first.name in method_names(host)


def scheme_names(host: PluginHost) -> list[str]:
    """Return the names that a scheme may begin with, for messages and completions."""
    named = [*formats.USUAL, *aliases.FORMATS]
    return list(dict.fromkeys([*named, *_standing_alone(host)]))


def _standing_alone(host: PluginHost) -> list[str]:
    """Return the methods whose cards name a format."""
    names = []
    for name in method_names(host):
        term = _meant(Term(name), aliases.METHODS)
        if any(method.format for method in find_methods(term, host)):
            names.append(name)
    return names


def _meant(term: Term, plain_names: Mapping[str, aliases.Alias]) -> Term:
    """Return what a plain name stands for, the term's own options beside its."""
    alias = None if term.family else plain_names.get(term.name)
    if alias is None:
        return term
    (meant,) = read(alias.stands_for).terms
    options = {**dict(meant.options), **dict(term.options)}
    return Term(meant.name, tuple(sorted(options.items())), meant.family)


def _is_bias_correction(term: Term) -> bool:
    if term.name != BIAS_CORRECTION or term.family not in ("", "algorithm"):
        return False
    if term.options:
        raise ConfigError(f"method {BIAS_CORRECTION!r} has no options")
    return True


def _implied(first: Term, rest: Sequence[Term], text: str, host: PluginHost) -> Format:
    """Return the format that a method stands for, which comes first where no format does.

    Raises:
        ConfigError: If it is no method, or stands for no format.
    """
    late = [t for t in rest if find_format(_meant(t, aliases.FORMATS)) is not None]
    is_correction = _is_bias_correction(first)
    methods = () if is_correction else find_methods(first, host)
    if not methods and not is_correction:
        names = scheme_names(host)
        raise ConfigError(
            f"no scheme called {str(first)!r}{nearest(first.name, names)}; a scheme is "
            "format[+method...], and `octavo schemes MODEL` lists them"
        )
    if late:
        others = [t for t in (first, *rest) if t is not late[0]]
        said = "+".join(map(str, [late[0], *others]))
        raise ConfigError(
            f"scheme {text!r}: the format comes first, then methods: {said}"
        )
    for method in methods:
        if method.format:
            found = find_format(_meant(Term(method.format), aliases.FORMATS))
            if found is not None:
                return found
            raise ConfigError(
                f"the card of {method.name} names {method.format!r}, which is no format"
            )
    raise ConfigError(
        f"scheme {text!r}: {first} is a method and stands for no format by itself; write one "
        f"before it: int8-static+{first}"
    )


def _methods(term: Term, text: str, host: PluginHost) -> tuple[Method, ...]:
    found = find_methods(term, host)
    if found:
        return found
    if find_format(_meant(term, aliases.FORMATS)) is not None:
        raise ConfigError(
            f"scheme {text!r}: {term} is a format, and a scheme has one, which comes first"
        )
    raise ConfigError(
        f"scheme {text!r}: no method called {str(term)!r}"
        f"{nearest(term.name, method_names(host))}"
    )


__all__ = ["NamedScheme", "is_scheme", "read_named", "scheme_names"]
