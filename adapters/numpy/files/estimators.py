"""From fitted scikit-learn estimators to the graph. Reads their attributes; imports nothing of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Builder, Graph
from octavo.core.errors import ModelError

_HIDDEN = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": ""}


def from_estimator(estimator: Any) -> Graph:
    """Return the graph of a fitted estimator: features float32 (samples, features) in.

    Out come ``predict_proba`` of classifiers and ``predict`` of regressors, float32.

    Raises:
        ModelError: If the estimator is not fitted, or is none of those that the graph has a form for.
    """
    steps = (
        [step for _, step in estimator.steps]
        if type(estimator).__name__ == "Pipeline"
        else [estimator]
    )
    steps = [s for s in steps if s not in (None, "passthrough")]
    b = Builder()
    value = b.input("x", (None, int(_fitted(steps[0], "n_features_in_"))))
    for i, step in enumerate(steps):
        kind = next((c.__name__ for c in type(step).__mro__ if c.__name__ in _FORMS), None)
        if kind is None:
            raise ModelError(
                f"{type(step).__name__} has no form in the NumPy graph; there are: {', '.join(_FORMS)}"
            )
        value = _FORMS[kind](b, value, step, f"step{i}." if len(steps) > 1 else "")
    return b.graph(value)


def _fitted(estimator: Any, name: str) -> Any:
    try:
        return getattr(estimator, name)
    except AttributeError:
        raise ModelError(
            f"{type(estimator).__name__} is not fitted (it has no {name}); call fit first"
        ) from None


def _f32(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def _perceptron(b: Builder, x: str, e: Any, prefix: str) -> str:
    weights, biases = _fitted(e, "coefs_"), e.intercepts_
    for i, (w, bias) in enumerate(zip(weights, biases, strict=True)):
        x = b.Gemm(x, _f32(w), _f32(bias), name=f"{prefix}layer{i}")
        if i < len(weights) - 1 and _HIDDEN[e.activation]:
            x = b.node(_HIDDEN[e.activation], x)
    return _finish(b, x, e, e.out_activation_, weights[-1].shape[1])


def _finish(b: Builder, x: str, e: Any, activation: str, width: int) -> str:
    if activation == "softmax":
        return str(b.Softmax(x, axis=1))
    if activation == "logistic":
        x = b.Sigmoid(x)
        return x if width > 1 else str(b.Concat(b.Sub(np.float32(1), x), x, axis=1))
    if activation == "exp":
        x = b.Exp(x)
    return x if width > 1 else str(b.Reshape(x, np.array([-1])))


def _linear(b: Builder, x: str, e: Any, prefix: str) -> str:
    coefficients = np.atleast_2d(_fitted(e, "coef_"))
    bias = np.broadcast_to(np.asarray(e.intercept_, np.float32), (coefficients.shape[0],))
    x = b.Gemm(x, _f32(coefficients.T), _f32(bias), name=f"{prefix}linear")
    if np.ndim(e.coef_) == 2 and not hasattr(e, "classes_"):
        return x
    return _finish(b, x, e, "identity", coefficients.shape[0])


def _logistic(b: Builder, x: str, e: Any, prefix: str) -> str:
    coefficients = _fitted(e, "coef_")
    bias = np.broadcast_to(np.asarray(e.intercept_, np.float32), (coefficients.shape[0],))
    x = b.Gemm(x, _f32(coefficients.T), _f32(bias), name=f"{prefix}linear")
    return _finish(
        b, x, e, "logistic" if coefficients.shape[0] == 1 else "softmax", coefficients.shape[0]
    )


def _standard(b: Builder, x: str, e: Any, prefix: str) -> str:
    _fitted(e, "n_features_in_")
    if e.with_mean:
        x = b.Sub(x, _f32(e.mean_), name=f"{prefix}centre")
    return str(b.Div(x, _f32(e.scale_), name=f"{prefix}scale")) if e.with_std else x


def _min_max(b: Builder, x: str, e: Any, prefix: str) -> str:
    x = b.Add(
        b.Mul(x, _f32(_fitted(e, "scale_")), name=f"{prefix}scale"),
        _f32(e.min_),
        name=f"{prefix}shift",
    )
    if e.clip:
        low, high = e.feature_range
        x = b.Clip(x, np.float32(low), np.float32(high))
    return x


def _pca(b: Builder, x: str, e: Any, prefix: str) -> str:
    components = _fitted(e, "components_")
    if e.whiten:
        components = (
            components
            / np.sqrt(np.maximum(e.explained_variance_, np.finfo(np.float64).eps))[:, None]
        )
    return str(
        b.Gemm(x, _f32(components.T), _f32(-e.mean_ @ components.T), name=f"{prefix}project")
    )


_FORMS: dict[str, Any] = {
    "StandardScaler": _standard,
    "MinMaxScaler": _min_max,
    "PCA": _pca,
    "BaseMultilayerPerceptron": _perceptron,
    "LogisticRegression": _logistic,
    "LinearClassifierMixin": _linear,
    "LinearModel": _linear,
}
