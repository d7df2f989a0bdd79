"""The text of a scheme, read and written again; what its names stand for is not asked here.

::

    scheme  = term ("+" term)*              the format first, then methods
    term    = [family ":"] name ["(" option ("," option)* ")"]
    option  = name "=" value                a number, true, false, none, a word, or "quoted text"

Names mean the same in upper and lower case, and with a hyphen or an underscore.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

from octavo.core.errors import ConfigError, shown
from octavo.core.values.scheme import PartChoice, Scalar

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_TERM = re.compile(
    r"\s*(?:(?P<family>[\w-]+)\s*:\s*)?(?P<name>[\w.-]+)\s*"
    rf'(?P<options>\((?:[^()"]|{_QUOTED})*\))?\s*',
    re.ASCII,
)
_OPTION = re.compile(
    rf'\s*(?P<name>[\w-]+)\s*=\s*(?P<value>{_QUOTED}|[^\s,"()=]+)\s*', re.ASCII
)
# As many digits as the largest count of a machine has; what is longer is read as a float.
_WHOLE = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "none": None, "null": None}

EXAMPLE = "int8-static+smoothquant(alpha=0.75)"
"""What messages show of the grammar."""


@dataclass(frozen=True, slots=True)
class Term:
    """A format or a method as it is written.

    Attributes:
        name: In lower case, with hyphens: ``outlier-suppression``.
        options: (name, value), names with underscores, in the order of the names.
        family: What kind of method is meant, where one name stands for several: ``transform``,
            ``algorithm``, ``calibrator``, ``recovery``; else empty.
    """

    name: str
    options: tuple[tuple[str, Scalar], ...] = ()
    family: str = ""

    def __str__(self) -> str:
        before = f"{self.family}:" if self.family else ""
        inner = ",".join(f"{name}={_text(value)}" for name, value in self.options)
        return f"{before}{self.name}({inner})" if inner else f"{before}{self.name}"

    def choice(self, kind: str) -> PartChoice:
        """Return the part of that name with the term's options."""
        return PartChoice(kind=kind, options=self.options)


@dataclass(frozen=True, slots=True)
class Written:
    """A scheme as it is written: ``str`` of it reads back as the same value.

    Attributes:
        terms: The format first, or a method that stands for one; then methods. At least one.
    """

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.terms))


def read(text: str) -> Written:
    """Read a scheme's text.

    Raises:
        ConfigError: If a method is empty, a bracket is open, an option has no value or stands
            twice; the message says where and shows the form.
    """
    terms: list[Term] = []
    position = 0
    while True:
        found = _TERM.match(text, position)
        if found is None:
            raise ConfigError(_why_no_term(text, position, len(terms)))
        terms.append(_term(found, text))
        position = found.end()
        if position == len(text):
            return Written(tuple(terms))
        if text[position] == "(":
            raise ConfigError(
                f"scheme {shown(text)}: the bracket of {shown(text[position:])} does not close, or "
                f"holds another; write it so: {EXAMPLE}"
            )
        if text[position] != "+":
            rest = text[position:]
            raise ConfigError(
                f"scheme {shown(text)} cannot be read from {shown(rest)} on: methods follow a "
                f"format, each after a '+', with options in brackets: {EXAMPLE}"
            )
        position += 1


def plain(name: str) -> str:
    """Return a name as terms have it: in lower case, with hyphens."""
    return name.strip().lower().replace("_", "-")


def _term(found: re.Match[str], text: str) -> Term:
    inner = found["options"] or "()"
    options: dict[str, Scalar] = {}
    for name, value in _options(inner[1:-1], text):
        if name in options:
            raise ConfigError(f"scheme {shown(text)}: option {name!r} stands twice")
        options[name] = value
    in_order = tuple(sorted(options.items(), key=lambda option: option[0]))
    return Term(plain(found["name"]), in_order, plain(found["family"] or ""))


def _options(inner: str, text: str) -> list[tuple[str, Scalar]]:
    """Return (name, value) of what stands between brackets."""
    if not inner.strip():
        return []
    options = []
    position = 0
    while True:
        found = _OPTION.match(inner, position)
        if found is None:
            raise ConfigError(
                f"scheme {shown(text)}: an option is name=value, not "
                f"{shown(inner[position:])}; write it so: {EXAMPLE}"
            )
        name = plain(found["name"]).replace("-", "_")
        options.append((name, read_value(found["value"], name)))
        position = found.end()
        if position == len(inner):
            return options
        if inner[position] != ",":
            raise ConfigError(
                f"scheme {shown(text)}: options are parted by commas, and before "
                f"{shown(inner[position:])} there is none"
            )
        position += 1


def read_value(text: str, name: str) -> Scalar:
    """Return what an option's text means: a number, true, false, none, or the text.

    Args:
        text: Of the value; ``"quoted"`` where it is text whatever it looks like.
        name: Of the option, for the message.

    Raises:
        ConfigError: If it is no value.
    """
    if text.startswith('"'):
        try:
            quoted: str = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"option {name!r}: {text} is no text: {error}") from error
        return quoted
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ConfigError(f"option {name!r}: {text} is larger than any number here")
        return number
    return text


def _text(value: Scalar) -> str:
    """Return a value as it is read back."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    is_word = re.fullmatch(r'[^\s,"()=]+', value, re.ASCII) is not None
    looks_like_another = value.lower() in _WORDS or _NUMBER.fullmatch(value) is not None
    return value if is_word and not looks_like_another else json.dumps(value)


def _why_no_term(text: str, position: int, before: int) -> str:
    if not text.strip():
        return f"a scheme is a name, and this one is empty; write it so: {EXAMPLE}"
    rest = text[position:].strip()
    if not rest or rest.startswith("+"):
        what = "a method" if before else "the format"
        where = "after" if before else "before"
        return f"scheme {shown(text)}: {what} {where} a '+' is empty; write it so: {EXAMPLE}"
    return f"scheme {shown(text)} cannot be read from {shown(rest)} on; write it so: {EXAMPLE}"


__all__ = ["EXAMPLE", "Term", "Written", "plain", "read", "read_value"]
