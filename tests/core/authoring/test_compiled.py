"""The candidate of runtimes that compile: what stands in the base, for all of them."""

from __future__ import annotations

import json
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from octavo.plugin import (
    Applied,
    Call,
    DataError,
    OpScheme,
    QuantSpec,
    Recipe,
    read_recipe,
)

from .toy import EXAMPLE, INPUTS, WEIGHT, Graph, ToyCandidate

W8 = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8"))
RECIPE = Recipe({"fc": W8})
EXPECTED = EXAMPLE @ WEIGHT.T


def _candidate(outputs: int = 1) -> ToyCandidate:
    ToyCandidate.compilations = 0
    return ToyCandidate(Graph(WEIGHT, outputs=outputs), RECIPE, None, INPUTS)


def test_it_is_compiled_once_and_not_before_it_runs() -> None:
    made = _candidate()
    assert ToyCandidate.compilations == 0
    for _ in range(3):
        (y,) = made.run((EXAMPLE,))
    np.testing.assert_allclose(y, EXPECTED, rtol=1e-6)
    assert ToyCandidate.compilations == 1


def test_reading_the_ledger_compiles_and_twins_share_what_was_compiled() -> None:
    made = _candidate()
    twin = made.with_ledger({"fc": Applied(W8, W8, "simulated")}, Recipe({}))
    assert twin.ledger["fc"].realization == "simulated" and not len(twin.recipe)
    assert dict(made.ledger) == {"fc": Applied(W8, W8)} and made.recipe == RECIPE
    twin.run((EXAMPLE,))
    made.run((EXAMPLE,))
    assert ToyCandidate.compilations == 1


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_native_object_is_a_function_of_arrays(outputs: int) -> None:
    native = _candidate(outputs).native
    ways = (
        native(EXAMPLE),
        native(x=EXAMPLE),
        native({"x": EXAMPLE}),
        native((EXAMPLE,)),
        native([EXAMPLE]),
        native(Call(EXAMPLE)),
        native(EXAMPLE.tolist()),
    )
    for found in ways:
        if outputs == 1:
            np.testing.assert_allclose(found, EXPECTED, rtol=1e-5)
        else:
            assert isinstance(found, tuple) and len(found) == 2
            np.testing.assert_allclose(found[1], 2 * EXPECTED, rtol=1e-5)


def test_it_travels_and_is_compiled_where_it_arrives() -> None:
    made = _candidate()
    made.run((EXAMPLE,))
    there = cloudpickle.loads(cloudpickle.dumps(made))
    np.testing.assert_array_equal(there.run((EXAMPLE,))[0], made.run((EXAMPLE,))[0])
    assert ToyCandidate.compilations == 2
    assert (there.recipe, there.ledger) == (made.recipe, dict(made.ledger))
    native = cloudpickle.loads(cloudpickle.dumps(made.native))
    np.testing.assert_array_equal(native(EXAMPLE), made.native(EXAMPLE))


def test_its_fingerprint_is_of_the_weights_it_runs_with() -> None:
    made = _candidate()
    before = made.fingerprint()
    assert made.fingerprint() == before == _candidate().fingerprint()
    made.model.weight = WEIGHT + 1
    assert made.fingerprint() != before


def test_it_saves_its_own_files_with_recipe_and_ledger(tmp_path: Path) -> None:
    made = _candidate()
    made.save(tmp_path)
    assert read_recipe(tmp_path) == (RECIPE, {"fc": Applied(W8, W8)})
    found = json.loads((tmp_path / "model.toy").read_text())
    np.testing.assert_allclose(found["weight"], WEIGHT)


def test_what_does_not_fit_is_a_data_error() -> None:
    with pytest.raises(DataError, match="'z'"):
        _candidate().run({"z": EXAMPLE})
    with pytest.raises(DataError, match="takes shape"):
        _candidate().native(EXAMPLE[:, :3])


def test_what_the_runtime_raises_is_a_data_error_that_names_the_arrays() -> None:
    made = _candidate()
    made.model.weight = WEIGHT[:, :3]
    with pytest.raises(DataError, match=r"cannot run the model on x float32\(16, 8\)"):
        made.run((EXAMPLE,))


def test_a_candidate_without_any_ledger_says_what_is_missing() -> None:
    class Silent(ToyCandidate):
        executed = ToyCandidate.__mro__[1].executed  # type: ignore[attr-defined]

    with pytest.raises(NotImplementedError, match="ledger"):
        dict(Silent(Graph(WEIGHT), RECIPE, None, INPUTS).ledger)
