"""The examples of training run, and the losses that they show fall."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import octavo

ROOT = Path(__file__).resolve().parent.parent


def shown_by(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object
) -> tuple[octavo.Quantized, str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    result = runpy.run_module(f"examples.{name}")["main"]()
    assert isinstance(result, octavo.Quantized)
    assert (tmp_path / "out" / name / "octavo.json").exists()
    return result, capsys.readouterr().out  # type: ignore[attr-defined]


def numbers(text: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def test_training_brings_back_what_two_and_four_bits_lose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result, shown = shown_by("qat", tmp_path, monkeypatch, capsys)
    losses = numbers(shown, r"loss ([\d.]+)")
    assert losses[4:] == sorted(losses[4:], reverse=True)
    plain, rounded, trained = numbers(shown, r"accuracy ([\d.]+)")
    assert rounded < plain - 0.05
    assert trained > plain - 0.02
    assert {line.realization for line in result.candidate.ledger.values()} == {
        "simulated"
    }


@pytest.mark.slow
def test_updates_teach_a_model_in_four_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, shown = shown_by("qlora", tmp_path, monkeypatch, capsys)
    before, trained, *others = numbers(shown, r": loss ([\d.]+)")
    assert trained < 0.1 * before
    assert others == pytest.approx([trained] * 4, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distill", "reconstruction"])
def test_what_is_learned_comes_nearer_to_float(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, shown = shown_by(name, tmp_path, monkeypatch, capsys)
    start, *learned = numbers(shown, r"([\d.]+) nats")
    assert max(learned) < 0.7 * start
    assert learned[2] < learned[0]
