"""Backends as a configuration writes them: one for each value of a setting that is a list."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, UnknownPart
from octavo.core.opening.backends import asked_backends, kinds_of, only_backend

HOST = PluginHost(third_party=False)


def names(*tables: Any, baseline: Any = None) -> list[str]:
    return [a.name for a in asked_backends(tables, HOST, baseline).searched]


def test_a_backend_by_itself_has_its_plain_name() -> None:
    assert names("onnx", {"kind": "numpy", "threads": 2}) == ["onnx", "numpy"]


def test_each_value_of_a_list_is_a_backend() -> None:
    found = asked_backends(
        [{"kind": "onnx", "threads": [1, 2], "form": "qoperator"}], HOST
    )
    assert [a.name for a in found.searched] == ["onnx(threads=1)", "onnx(threads=2)"]
    assert [a.settings.threads for a in found.searched] == [1, 2]  # type: ignore[attr-defined]
    assert {a.settings.form for a in found.searched} == {"qoperator"}  # type: ignore[attr-defined]
    assert {a.kind for a in found.searched} == {"onnx"}


def test_lists_are_combined_and_defaults_have_the_plain_name() -> None:
    table = {"kind": "onnx", "threads": [None, 1], "form": ["qdq", "qoperator"]}
    assert names(table) == [
        "onnx",
        "onnx(form=qoperator)",
        "onnx(threads=1)",
        "onnx(form=qoperator,threads=1)",
    ]


def test_a_setting_that_takes_a_list_is_one_value() -> None:
    cpu, other = (
        ["CPUExecutionProvider"],
        ["DnnlExecutionProvider", "CPUExecutionProvider"],
    )
    assert names({"kind": "onnx", "providers": other}) == ["onnx"]
    found = asked_backends([{"kind": "onnx", "providers": [cpu, other]}], HOST).searched
    assert [list(a.settings.providers) for a in found] == [cpu, other]  # type: ignore[attr-defined]


def test_a_name_reads_back_as_its_settings() -> None:
    other = ["DnnlExecutionProvider"]
    usual = ["CPUExecutionProvider"]
    table = {"kind": "onnx", "providers": [usual, other], "spinning": [True, False]}
    for asked in asked_backends([table], HOST).searched:
        assert only_backend(asked.name, HOST).settings == asked.settings


def test_a_text_with_options() -> None:
    assert names("onnx(threads=1)") == ["onnx"]
    assert names("onnx(threads=1|2)", "numpy") == [
        "onnx(threads=1)",
        "onnx(threads=2)",
        "numpy",
    ]
    assert names("onnx(threads=1)", "onnx(threads=2)") == [
        "onnx(threads=1)",
        "onnx(threads=2)",
    ]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (["onnx", "onnx"], "named twice with the same settings"),
        ([{"kind": "onnx", "threads": [1, 1]}], "named twice with the same settings"),
        ([{"kind": "onnx", "threads": ["x", 1]}], "threads"),
        ([{"kind": "onnx", "thread": [1, 2]}], "'thread'; did you mean 'threads'"),
        (["onnx(thread=1)"], "'thread'; did you mean 'threads'"),
        (["onnx(threads=1)+numpy"], "write it so: onnx"),
        ([{"threads": 1}], "needs a kind"),
        ([3], "a name or a table"),
    ],
)
def test_what_makes_no_sense_is_refused(tables: list[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        asked_backends(tables, HOST)


def test_an_unknown_backend_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownPart, match="did you mean 'onnx'"):
        asked_backends(["onx(threads=1)"], HOST)


def test_where_nothing_compares_there_is_one_value() -> None:
    with pytest.raises(ConfigError, match=r"2 values of a setting .*onnx\(threads=2\)"):
        only_backend({"kind": "onnx", "threads": [1, 2]}, HOST)


def test_the_baseline_is_one_that_is_searched_or_another() -> None:
    def base(baseline: Any, *tables: Any) -> tuple[list[str], str]:
        found = asked_backends(tables, HOST, baseline)
        assert found.baseline is not None
        return [a.name for a in found.searched], found.baseline.name

    two = {"kind": "onnx", "threads": [1, 2]}
    assert base("onnx", two) == (
        ["onnx(threads=1)", "onnx(threads=2)"],
        "onnx(threads=1)",
    )
    assert base("onnx(threads=2)", two)[1] == "onnx(threads=2)"
    assert base("numpy", "onnx") == (["onnx"], "numpy")
    # Two of one card are told apart by their names, though one alone has the plain one.
    four = {"kind": "onnx", "threads": 4}
    assert base({"kind": "onnx", "threads": 1}, four) == (
        ["onnx(threads=4)"],
        "onnx(threads=1)",
    )


def test_the_cards_that_are_named() -> None:
    assert kinds_of(["numpy", {"kind": "onnx", "threads": [1, 2]}], HOST) == (
        "numpy",
        "onnx",
    )
