"""The judge of the mutation run: what is counted, what is an equivalent, what fails it."""

import json
from pathlib import Path

import pytest

from scripts import mutants
from scripts.mutants import Change, function_of, module_of

HALVED = Change("octavo.core.numerics.rounding.half", "return x / 2", "return x / 3")


@pytest.mark.parametrize(
    ("mutant", "function"),
    [
        (
            "octavo.core.numerics.affine.x_steps__mutmut_12",
            "octavo.core.numerics.affine.steps",
        ),
        ("octavo.core.a.xǁGptqǁ_grid__mutmut_3", "octavo.core.a.Gptq._grid"),
        ("octavo.core.a.x__private__mutmut_3", "octavo.core.a._private"),
    ],
)
def test_a_mutant_is_told_by_its_function(mutant: str, function: str) -> None:
    assert function_of(mutant) == function


def test_a_file_is_told_by_its_import_name() -> None:
    assert module_of(Path("src/octavo/core/x.py")) == "octavo.core.x"


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of three mutants: two are killed, one survived."""
    folder = tmp_path / "mutants/src/octavo/core/numerics"
    folder.mkdir(parents=True)
    outcomes = {f"octavo.core.numerics.rounding.x_half__mutmut_{i}": 1 for i in (1, 2)}
    outcomes["octavo.core.numerics.rounding.x_half__mutmut_3"] = 0
    meta = json.dumps({"exit_code_by_key": outcomes})
    (folder / "rounding.py.meta").write_text(meta)
    monkeypatch.setattr(mutants, "COPY", tmp_path / "mutants")
    monkeypatch.setattr(mutants, "EQUIVALENT", tmp_path / "equivalent.toml")
    monkeypatch.setattr(mutants, "change_of", lambda mutant, path: HALVED)
    return tmp_path


def test_a_survivor_fails_the_run_and_is_printed(
    ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mutants.judge() == 1
    said = capsys.readouterr().out
    assert "+ return x / 3" in said
    assert "66.7% killed (2 killed, 1 survived)" in said


def test_a_survivor_with_a_reason_does_not(
    ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ran / "equivalent.toml").write_text(
        f'[[mutant]]\nfunction = "{HALVED.function}"\nbefore = "{HALVED.before}"\n'
        f'after = "{HALVED.after}"\nwhy = "x is always zero"\n'
    )
    assert mutants.judge() == 0
    assert "100.0% killed (1 equivalent, 2 killed)" in capsys.readouterr().out


@pytest.mark.parametrize("code", [None, 2, -11])
def test_a_run_without_a_verdict_of_each_fails(
    ran: Path, code: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = ran / "mutants/src/octavo/core/numerics/rounding.py.meta"
    name = "octavo.core.numerics.rounding.x_half__mutmut_1"
    meta.write_text(json.dumps({"exit_code_by_key": {name: code}}))
    assert mutants.judge() == 1
    assert "no verdict: 1 mutants" in capsys.readouterr().out


def test_a_run_of_nothing_fails(ran: Path) -> None:
    (ran / "mutants/src/octavo/core/numerics/rounding.py.meta").unlink()
    assert mutants.judge() == 1


def test_what_runs_for_ever_is_told_apart(
    ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = ran / "mutants/src/octavo/core/numerics/rounding.py.meta"
    names = [f"octavo.core.numerics.rounding.x_half__mutmut_{i}" for i in (1, 2)]
    outcomes = dict(zip(names, (1, 36), strict=True))
    meta.write_text(json.dumps({"exit_code_by_key": outcomes}))
    assert mutants.judge() == 0
    assert "100.0% killed (1 killed, 1 timed out)" in capsys.readouterr().out


def test_every_equivalent_of_the_project_has_a_reason() -> None:
    listed = mutants.equivalent_changes(Path("tests/equivalent_mutants.toml"))
    assert all(why.strip() for why in listed.values())
