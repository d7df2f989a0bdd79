"""From fitted scikit-learn estimators to the graph.

Reads their attributes; imports nothing of scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array, Builder, Graph
from octavo.core.errors import ModelError

Form = Callable[[Builder, str, Any, str], str]
"""(builder, value, estimator, prefix of names) -> the value that the estimator's nodes write."""

_HIDDEN = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": ""}
"""scikit-learn's activation -> the operator, '' for none."""


def from_estimator(estimator: Any) -> Graph:
    """Return the graph of a fitted estimator: features float32 (samples, features) in.

    Out come ``predict_proba`` of classifiers and ``predict`` of regressors, float32.

    Raises:
        ModelError: If the estimator is not fitted, or the graph has no form for it.
    """
    steps = _steps_of(estimator)
    b = Builder()
    features = int(_fitted(steps[0], "n_features_in_"))
    value = b.input("x", (None, features))
    for i, step in enumerate(steps):
        prefix = f"step{i}." if len(steps) > 1 else ""
        value = _form_of(step)(b, value, step, prefix)
    return b.graph(value)


def _steps_of(estimator: Any) -> list[Any]:
    """Return the estimators of a pipeline that do something; else the estimator alone."""
    if type(estimator).__name__ != "Pipeline":
        return [estimator]
    steps = [step for _, step in estimator.steps]
    # scikit-learn's two ways to leave a step out.
    return [step for step in steps if step not in (None, "passthrough")]


def _form_of(step: Any) -> Form:
    """Return what writes an estimator as nodes: that of the first class which has one."""
    for kind in type(step).__mro__:
        if kind.__name__ in _FORMS:
            return _FORMS[kind.__name__]
    known = ", ".join(_FORMS)
    raise ModelError(
        f"{type(step).__name__} has no form in the NumPy graph; there are: {known}"
    )


def _fitted(estimator: Any, name: str) -> Any:
    try:
        return getattr(estimator, name)
    except AttributeError:
        raise ModelError(
            f"{type(estimator).__name__} is not fitted (it has no {name}); call fit first"
        ) from None


def _f32(array: Any) -> Array:
    return np.ascontiguousarray(array, dtype=np.float32)


def _perceptron(b: Builder, x: str, e: Any, prefix: str) -> str:
    weights = _fitted(e, "coefs_")
    hidden = _HIDDEN[e.activation]
    layers = zip(weights, e.intercepts_, strict=True)
    for i, (weight, bias) in enumerate(layers):
        is_hidden = i < len(weights) - 1
        x = b.Gemm(x, _f32(weight), _f32(bias), name=f"{prefix}layer{i}")
        if is_hidden and hidden:
            x = b.node(hidden, x)
    width = weights[-1].shape[1]
    return _finish(b, x, e.out_activation_, width)


def _finish(b: Builder, x: str, activation: str, width: int) -> str:
    """Add the output's activation, and give the output scikit-learn's shape."""
    if activation == "softmax":
        return str(b.Softmax(x, axis=1))
    if activation == "logistic":
        x = b.Sigmoid(x)
        if width > 1:
            return x
        # Two classes share one output: the probabilities of both are given.
        rest = b.Sub(np.float32(1), x)
        return str(b.Concat(rest, x, axis=1))
    if activation == "exp":
        x = b.Exp(x)
    if width > 1:
        return x
    return str(b.Reshape(x, np.array([-1])))


def _linear_layer(b: Builder, x: str, e: Any, prefix: str) -> tuple[str, int]:
    """Add a linear estimator's product; return its value and how many outputs it has."""
    coefficients = np.atleast_2d(_fitted(e, "coef_"))
    width = coefficients.shape[0]
    # One number where no intercept was fitted.
    intercept = np.asarray(e.intercept_, np.float32)
    bias = _f32(np.broadcast_to(intercept, (width,)))
    y = b.Gemm(x, _f32(coefficients.T), bias, name=f"{prefix}linear")
    return y, width


def _linear(b: Builder, x: str, e: Any, prefix: str) -> str:
    y, width = _linear_layer(b, x, e, prefix)
    # A regressor that was fitted to a matrix keeps its column even where it is one.
    is_matrix = np.ndim(e.coef_) == 2 and not hasattr(e, "classes_")
    return y if is_matrix else _finish(b, y, "identity", width)


def _logistic(b: Builder, x: str, e: Any, prefix: str) -> str:
    y, width = _linear_layer(b, x, e, prefix)
    return _finish(b, y, "logistic" if width == 1 else "softmax", width)


def _standard(b: Builder, x: str, e: Any, prefix: str) -> str:
    _fitted(e, "n_features_in_")
    if e.with_mean:
        mean = _f32(e.mean_)
        x = b.Sub(x, mean, name=f"{prefix}centre")
    if e.with_std:
        deviation = _f32(e.scale_)
        x = b.Div(x, deviation, name=f"{prefix}scale")
    return x


def _min_max(b: Builder, x: str, e: Any, prefix: str) -> str:
    scale = _f32(_fitted(e, "scale_"))
    x = b.Mul(x, scale, name=f"{prefix}scale")
    x = b.Add(x, _f32(e.min_), name=f"{prefix}shift")
    if e.clip:
        low, high = e.feature_range
        x = b.Clip(x, np.float32(low), np.float32(high))
    return x


def _pca(b: Builder, x: str, e: Any, prefix: str) -> str:
    components = _fitted(e, "components_")
    if e.whiten:
        # As scikit-learn does: a variance of 0 is not divided by.
        variance = np.maximum(e.explained_variance_, np.finfo(np.float64).eps)
        components = components / np.sqrt(variance)[:, None]
    weight = components.T
    shift = -e.mean_ @ weight
    return str(b.Gemm(x, _f32(weight), _f32(shift), name=f"{prefix}project"))


_FORMS: dict[str, Form] = {
    "StandardScaler": _standard,
    "MinMaxScaler": _min_max,
    "PCA": _pca,
    "BaseMultilayerPerceptron": _perceptron,
    "LogisticRegression": _logistic,
    "LinearClassifierMixin": _linear,
    "LinearModel": _linear,
}
"""Class -> what writes it as nodes."""
