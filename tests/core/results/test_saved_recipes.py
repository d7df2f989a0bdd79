"""Results and recipes that travel: through pickle, and from a saved result back to a model."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import octavo
from octavo.core.errors import ConfigError
from tests import tiny


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> octavo.Result:
    return octavo.autotune(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        strategy="basic",
        max_trials=2,
        minimise="size",
        storage=tmp_path_factory.mktemp("run") / "h.db",
        host=tiny.host(),
    )


def test_a_result_survives_pickle(result: octavo.Result) -> None:
    x, _ = tiny.digits()
    assert result.views[
        "tiny"
    ].by_name  # what is derived from a view must not hinder it
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(again.model(x), result.model(x))
    assert again.best == result.best
    assert again.trials == result.trials
    assert list(again.views["tiny"].by_name) == list(result.views["tiny"].by_name)
    assert again.facts() == result.facts()


def test_results_of_the_backends_survive_pickle(tmp_path: Path) -> None:
    from sklearn.neural_network import MLPClassifier

    x, y = tiny.digits()
    net = MLPClassifier((16,), max_iter=30, random_state=0).fit(x, y)

    def score(model: object) -> float:
        return float((np.asarray(model(x)).reshape(len(x), -1).argmax(1) == y).mean())  # type: ignore[operator]

    found = octavo.autotune(
        net,
        score,
        [x[:64]],
        strategy="basic",
        max_trials=1,
        minimise="size",
        storage=tmp_path / "h.db",
    )
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.model(x[:5]), found.model(x[:5]))
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    ).eval()
    batch = torch.from_numpy(x[:64])
    expected = module(batch).argmax(1)

    def agrees(model: object) -> float:
        return float((model(batch).argmax(1) == expected).float().mean())  # type: ignore[operator]

    found = octavo.autotune(
        module,
        agrees,
        [batch],
        strategy="basic",
        max_trials=1,
        minimise="size",
        storage=tmp_path / "t.db",
    )
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again.model(batch), found.model(batch))


def test_a_saved_recipe_makes_the_same_model(
    result: octavo.Result, tmp_path: Path
) -> None:
    folder = result.save(tmp_path / "saved")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(result.best.recipe.to_json()))
    x, _ = tiny.digits()
    for scheme in (
        folder,
        str(folder),
        folder / "octavo.json",
        str(folder / "octavo.json"),
        recipe,
        str(recipe),
    ):
        made = octavo.quantize_model(
            tiny.chain(), scheme, tiny.calibration(), host=tiny.host()
        )
        assert made.candidate.recipe == result.best.recipe
        np.testing.assert_array_equal(made.model(x), result.model(x))


def test_what_is_no_recipe_says_so(tmp_path: Path) -> None:
    def quantize(scheme: object) -> object:
        return octavo.quantize_model(
            tiny.chain(), scheme, tiny.calibration(), host=tiny.host()
        )  # type: ignore[arg-type]

    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "half.json").write_text('{"schemes": {}, "ops": {"layer.0": "absent"}}')
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("list.json", "neither a recipe nor a configuration"),
        ("broken.json", "is no JSON"),
        ("half.json", "not a recipe"),
        ("empty", r"holds no octavo\.json"),
        ("absent.json", "does not exist"),
    ):
        with pytest.raises(ConfigError, match=said):
            quantize(tmp_path / name)
    with pytest.raises(
        ConfigError, match="no scheme called 'int8-statik'; did you mean 'int8-static'"
    ):
        quantize("int8-statik")


def test_a_configuration_file_is_still_one(tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text(
        json.dumps({"rules": [{"ops": ["layer.0"], "keep": "float"}]})
    )
    made = octavo.quantize_model(
        tiny.chain(), tmp_path / "rules.json", tiny.calibration(), host=tiny.host()
    )
    assert made.ledger
    assert "layer.0" not in made.candidate.recipe.schemes
