"""Recipe and ledger, written beside a runtime's files and read again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.plugin import (
    FLOAT,
    RECIPE_FILE,
    Applied,
    ModelError,
    OpScheme,
    QuantSpec,
    Recipe,
    ledger_from_json,
    ledger_to_json,
    read_recipe,
    write_recipe,
)

W8 = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8"))
RECIPE = Recipe({"a": W8, "b": W8}, backend="mine")
LEDGER = {
    "a": Applied(W8, W8),
    "b": Applied(W8, FLOAT, "kernel", "its shape is odd"),
    "c": Applied(FLOAT, FLOAT),
    "d": Applied(W8, W8, "simulated", "asked for by another recipe"),
}


def _written(folder: Path) -> Any:
    write_recipe(folder, SimpleNamespace(recipe=RECIPE, ledger=LEDGER))  # type: ignore[arg-type]
    return json.loads((folder / RECIPE_FILE).read_text())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    _written(tmp_path)
    assert read_recipe(tmp_path) == (RECIPE, LEDGER)


def test_a_file_beside_it_leads_to_it(tmp_path: Path) -> None:
    _written(tmp_path)
    model = tmp_path / "model.bin"
    model.write_bytes(b"")
    assert read_recipe(model)[0] == RECIPE


def test_a_ledger_travels_through_json() -> None:
    raw = json.loads(json.dumps(ledger_to_json(LEDGER, RECIPE)))
    assert ledger_from_json(RECIPE, raw) == LEDGER


def test_lines_that_are_written_whole_are_read() -> None:
    raw = {name: line.to_json() for name, line in LEDGER.items()}
    assert ledger_from_json(RECIPE, raw) == LEDGER


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"octavo\.recipe\.json is missing"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 99},
        {"recipe": {}},
        {"recipe": None},
        {"ledger": {"a": []}},
        {"ledger": {"a": {"requested": 3}}},
        {"ledger": None},
    ],
)
def test_a_damaged_file_is_a_model_error(
    tmp_path: Path, damage: dict[str, Any]
) -> None:
    raw = {**_written(tmp_path), **damage}
    (tmp_path / RECIPE_FILE).write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"octavo\.recipe\.json|the ledger's line"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}'])
def test_a_file_that_is_no_recipe_is_a_model_error(tmp_path: Path, text: str) -> None:
    (tmp_path / RECIPE_FILE).write_text(text)
    with pytest.raises(ModelError, match=r"octavo\.recipe\.json"):
        read_recipe(tmp_path)
