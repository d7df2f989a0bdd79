"""Tables at any width: whole words, nothing lost, no wider than the place."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from octavo.core.report.tables import TextTable, as_html, plain, table
from octavo.core.report.wrapping import pieces

NAMES = (
    "features.0.block.1.conv.weight",
    "node_Conv_2/109",
    "/encoder/layer.3/attention/self/query/MatMul",
    "漢字の長い名前/レイヤー",
)
REMARK = "it computes nothing, and its input is float here"


@pytest.fixture
def wide() -> TextTable:
    rows = [(name, "weight-only", "1,234,567", "0.471", REMARK) for name in NAMES]
    columns = ("op", "mode", "parameters", "accuracy.metric", "remark")
    figures = ("parameters", "accuracy.metric")
    return table(columns, rows, "a title: out/digits.db", right=figures)


def words(text: str) -> set[str]:
    """The pieces of a printed table that hold a letter or a digit."""
    cells = re.sub(r"[│┃━┏┓┡┩└┘─┴┬┳╇┼]", " ", text)
    return {word.strip() for word in pieces(cells) if word.strip()}


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40])
def test_no_word_is_cut_and_none_is_lost(wide: TextTable, width: int) -> None:
    printed = plain(wide, width)
    assert all(cell_len(line) <= width for line in printed.splitlines())
    expected = {
        p.strip() for row in wide.rows for cell in row for p in pieces(str(cell))
    }
    assert expected <= words(printed)


def test_the_least_important_columns_go_below() -> None:
    made = table(
        ("op", "mode", "seconds"),
        [("unbreakable_name", "static", "1.5")],
        right=("seconds",),
        least=("mode",),
    )
    printed = plain(made, 27)
    assert "mode: static" in printed
    assert "seconds" in printed.splitlines()[1]


def test_figures_are_never_broken() -> None:
    assert pieces("-3.5e-05") == ["-3.5e-05"]
    assert pieces("16.4 ms of 34.8 kB") == ["16.4 ms ", "of ", "34.8 kB"]
    assert pieces("uint8-asym/tensor") == ["uint8-", "asym/", "tensor"]
    assert pieces("layers.10.weight_v") == ["layers.", "10.", "weight_", "v"]


def test_a_word_that_fits_nowhere_is_cut_rather_than_lost() -> None:
    printed = plain(table(("name",), [("x" * 50,)]), 20)
    assert printed.count("x") == 50


def test_no_rows_and_markup_are_text() -> None:
    assert "name" in plain(table(("name",), []), 40)
    assert "[red]x" in plain(table(("name",), [("[red]x",)]), 40)


def test_html_is_escaped() -> None:
    made = as_html(table(("<b>",), [("<script>alert(1)</script>",)], "a & b"))
    assert "<script>" not in made
    assert "&lt;script&gt;" in made
    assert "a &amp; b" in made


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_any_encoding_prints_times(encoding: str) -> None:
    class Encoded(StringIO):
        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

    kept = Encoded()
    shown = table(("latency",), [(Text("85.3 µs"),)])
    Console(file=kept, width=40, color_system=None).print(shown)
    kept.getvalue().encode(encoding)
    assert "85.3" in kept.getvalue()
