"""The text of a scheme: what is written reads back, and what cannot be read says where."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import ConfigError, OctavoError
from octavo.core.opening.grammar.written import Term, Written, read

names = st.from_regex(r"[a-z0-9](?:[a-z0-9.-]{0,8}[a-z0-9])?", fullmatch=True)
settings_names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
)
options = st.dictionaries(settings_names, values, max_size=3).map(
    lambda found: tuple(sorted(found.items(), key=lambda option: option[0]))
)
families = st.sampled_from(("", "transform", "algorithm", "calibrator", "recovery"))
terms = st.builds(Term, names, options, families)
schemes = st.lists(terms, min_size=1, max_size=4).map(lambda t: Written(tuple(t)))


@given(schemes)
def test_what_is_written_reads_back(scheme: Written) -> None:
    assert read(str(scheme)) == scheme


@given(st.text(max_size=40))
def test_any_text_is_a_scheme_or_a_typed_error(text: str) -> None:
    with contextlib.suppress(OctavoError):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        "int8-static+outlier-suppression(bits=4,name=x)",
        "INT8_STATIC+Outlier_Suppression(bits=4,name=x)",
        " int8-static + outlier_suppression ( name = x , bits = 4 ) ",
    ],
)
def test_case_hyphens_and_blanks_mean_nothing(text: str) -> None:
    expected = Term("outlier-suppression", (("bits", 4), ("name", "x")))
    assert read(text) == Written((Term("int8-static"), expected))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.75", 0.75),
        ("1e-3", 0.001),
        ("20", 20),
        ("true", True),
        ("None", None),
        ("auto", "auto"),
        ("group:64", "group:64"),
        ('"20"', "20"),
        ('"a, (b) + c"', "a, (b) + c"),
    ],
)
def test_values_are_numbers_words_or_quoted(text: str, value: object) -> None:
    (term,) = read(f"x(a={text})").terms
    assert term.options == (("a", value),)
    assert type(term.options[0][1]) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this one is empty"),
        ("   ", "this one is empty"),
        ("+gptq", "the format before a '\\+' is empty"),
        ("int8-static+", "a method after a '\\+' is empty"),
        ("int8-static++gptq", "a method after a '\\+' is empty"),
        ("int8 static", "cannot be read from 'static' on"),
        ("x+gptq(damping=0.01", "the bracket .* does not close"),
        ("x+gptq(damping)", "an option is name=value"),
        ("x+gptq(damping=)", "an option is name=value"),
        ("x+gptq(a=1 b=2)", "parted by commas"),
        ("x+gptq(a=1,a=2)", "option 'a' stands twice"),
        ("x+gptq(a=1e999)", "larger than any number"),
        ("int8-static,gptq", "cannot be read from ',gptq' on"),
    ],
)
def test_what_cannot_be_read_says_where(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text)
