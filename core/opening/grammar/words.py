"""Words for what codes are: ``int4`` for signed and unsigned ones, ``fp8``, ``mxfp4``."""

from __future__ import annotations

import re

from octavo.core.numerics.codec import known_dtype
from octavo.core.values.scheme import QuantSpec

from ..specs import SpecRule

CASTS = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
}
"""Words for floats of 16 bits -> their dtype."""

INTEGER = re.compile(r"(?P<sign>u?)int(?P<bits>[2-8]|16)")
# What most tools call fp8 is the one of the two formats that has more digits.
FP8 = "fp8_e4m3fn"


def is_called(word: str, dtype: str) -> bool:
    """Return whether a dtype is meant by a word: ``int4`` by itself means unsigned codes too."""
    if word in (dtype, dtype.replace("_", "-")):
        return True
    return word == word_of(dtype)


def rule_of(word: str, options: SpecRule) -> SpecRule:
    """Return a rule of the dtypes that a word means, and of what options say beside it."""
    if options.dtype is not None:
        return options
    dtypes: tuple[str, ...] = (word.replace("-", "_"),)
    if word == "fp8":
        dtypes = (FP8,)
    if word.startswith("int"):
        dtypes = (word, f"u{word}")
    return options.model_copy(update={"dtype": dtypes})


def word_of_spec(spec: QuantSpec | None) -> str:
    """Return the word for a spec's codes; empty where there is no spec."""
    return "" if spec is None else word_of(spec.dtype)


def word_of(dtype: str) -> str:
    """Return the word for a dtype, which stands for the unsigned one too."""
    if dtype == FP8:
        return "fp8"
    integer = INTEGER.fullmatch(dtype)
    return f"int{integer['bits']}" if integer else dtype.replace("_", "-")


def name_of(weight: str, source: str, mode: str) -> str:
    """Return the name of a format that quantizes inputs too."""
    if weight == source:
        return f"{weight}-{mode}"
    widths = (INTEGER.fullmatch(weight), INTEGER.fullmatch(source))
    if widths[0] and widths[1]:
        return f"w{widths[0]['bits']}a{widths[1]['bits']}-{mode}"
    return f"w-{weight}-a-{source}-{mode}"


def is_dtype(word: str) -> bool:
    """Return whether a word names what codes may be, a cast's halves left out."""
    if word in CASTS:
        return False
    if word.lstrip("u").startswith("int"):
        return INTEGER.fullmatch(word) is not None
    return known_dtype(word.replace("-", "_"))


__all__ = [
    "CASTS",
    "INTEGER",
    "is_called",
    "is_dtype",
    "name_of",
    "rule_of",
    "word_of_spec",
]
