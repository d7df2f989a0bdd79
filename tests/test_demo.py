"""The demo and the examples do what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import octavo

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, with a history of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.slow
def test_the_demo_reaches_the_goal_in_int8_on_three_backends(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from examples.demo import main

    result = main(elsewhere / "demo")
    shown = capsys.readouterr().out
    assert result.goal_met
    assert result.baseline.metrics["accuracy"] > 0.97
    for backend in ("torch", "onnx", "numpy"):
        weighted = {
            op.name for op in result.views[backend].ops if op.type in ("conv", "linear")
        }
        assert len(weighted) == 8
        passing = [t for t in result.trials if t.recipe.backend == backend and t.passed]
        whole = [
            t
            for t in passing
            if all(
                not t.ledger[name].applied.is_float and t.ledger[name].honoured
                for name in weighted & set(t.ledger)
            )
        ]
        assert any(
            weighted <= set(t.ledger) and t.objectives["size"].ratio <= 0.30
            for t in whole
        ), backend  # type: ignore[operator]
        assert backend in shown
    assert "again: make demo" in shown
    page = (elsewhere / "demo" / "report.html").read_text()
    assert page.count('<figure class="plot') == 2
    page = page.replace("<wbr>", "")  # names may break behind their separators
    assert all(name in page for name in result.ledger)


@pytest.mark.parametrize(
    "name",
    ["tune_numpy", "tune_onnx", pytest.param("tune_pytorch", marks=pytest.mark.slow)],
)
def test_an_example_reaches_its_goal(name: str) -> None:
    main = runpy.run_module(f"examples.{name}")["main"]
    result = main()
    assert isinstance(result, octavo.Result)
    assert result.goal_met
    # Whether it is faster too is the processor's business; where it is not, the float model is
    # handed back.
    assert any(t.passed and t.objectives["size"].ratio < 0.35 for t in result.trials)
    assert result.best.number or "the float model is kept" in result.reason


def test_the_pictures_of_the_readme_show_the_demo() -> None:
    pictures = ROOT / "docs" / "pictures"
    drawn = (pictures / "demo.svg").read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]+>", "", drawn).replace("&#160;", " ")
    for words in ("goal reached", "torch", "onnx", "numpy", "again: make demo"):
        assert words in shown
    assert "url(http" not in drawn
    for picture in pictures.iterdir():
        assert picture.stat().st_size < 250_000
