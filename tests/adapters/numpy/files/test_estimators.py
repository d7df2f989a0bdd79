"""Graphs of fitted scikit-learn estimators give what the estimators give."""

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import octavo
from octavo.adapters.numpy import NumpyConfig
from octavo.adapters.numpy.adapter import NumpyAdapter
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ModelError

X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)
HOST = PluginHost(third_party=False)


def run(estimator: Any) -> np.ndarray:
    assert HOST.adapters()["numpy"].claims(estimator)
    return NumpyAdapter(NumpyConfig()).open(estimator).reference().run((X,))[0]


CLASSIFIERS = {
    "mlp": MLPClassifier((16, 8), max_iter=60, random_state=0),
    "tanh": MLPClassifier((12,), activation="tanh", max_iter=60, random_state=0),
    "logistic": LogisticRegression(max_iter=300),
    "pipeline": make_pipeline(
        StandardScaler(),
        PCA(3),
        MLPClassifier((10,), activation="logistic", max_iter=60, random_state=0),
    ),
    "whitened": make_pipeline(
        MinMaxScaler((-1, 2), clip=True), PCA(3, whiten=True), LogisticRegression()
    ),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_classifiers_equal_predict_proba(name: str, classes: int) -> None:
    estimator = CLASSIFIERS[name].fit(X, np.minimum(Y, classes - 1))
    np.testing.assert_allclose(
        run(estimator), estimator.predict_proba(X), rtol=1e-4, atol=2e-5
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize(
    "estimator",
    [
        LinearRegression(),
        Ridge(),
        MLPRegressor(hidden_layer_sizes=(8,), max_iter=80, random_state=0),
        make_pipeline(StandardScaler(), Ridge()),
    ],
    ids=lambda e: type(e).__name__,
)
def test_regressors_equal_predict(estimator: Any, targets: int) -> None:
    target = X @ np.ones(4) if targets == 1 else X @ np.ones((4, 2))
    estimator.fit(X, target)
    np.testing.assert_allclose(
        run(estimator), estimator.predict(X), rtol=1e-4, atol=1e-4
    )


def test_a_linear_classifier_without_probabilities_gives_its_decisions() -> None:
    estimator = RidgeClassifier().fit(X, Y)
    np.testing.assert_allclose(
        run(estimator), estimator.decision_function(X), rtol=1e-4, atol=1e-5
    )


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(ModelError, match="RandomForestClassifier has no form"):
        NumpyAdapter(NumpyConfig()).open(RandomForestClassifier(2).fit(X, Y))
    with pytest.raises(ModelError, match="not fitted"):
        NumpyAdapter(NumpyConfig()).open(MLPClassifier())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_perceptron_is_quantized_like_any_model() -> None:
    digits, labels = load_digits(return_X_y=True)
    digits = digits.astype(np.float32)
    estimator = make_pipeline(
        StandardScaler(), MLPClassifier((64,), max_iter=20, random_state=0)
    ).fit(digits[:1200], labels[:1200])
    quantized = octavo.quantize_model(
        estimator, "int8-static", [(digits[:200],)], host=HOST
    )
    assert all(
        line.realization == "kernel" and not line.applied.is_float
        for line in quantized.ledger.values()
    )
    score = (quantized.model(digits[1200:]).argmax(1) == labels[1200:]).mean()
    assert score >= estimator.score(digits[1200:], labels[1200:]) - 0.01
