"""The NumPy backend's card. Imports no framework, and NumPy's graph only when a model is opened."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from octavo.core.hookspecs import hookimpl
from octavo.core.parts import AdapterPart, PartConfig


class NumpyConfig(PartConfig):
    """Settings of the NumPy backend.

    Attributes:
        scratch: Upper bound of the scratch memory of one convolution or integer product, in bytes.
    """

    kind: Literal["numpy"] = "numpy"
    scratch: int = Field(default=4 << 20, ge=1 << 16)


@hookimpl
def octavo_adapters() -> Iterable[AdapterPart[Any]]:
    """Offer the NumPy backend."""
    return (
        AdapterPart(
            "numpy",
            "octavo.adapters.numpy.adapter:NumpyAdapter",
            NumpyConfig,
            "a graph of NumPy operations with exact integer arithmetic; needs nothing but NumPy",
            models=(
                "octavo.adapters.numpy.graph.Graph",
                "sklearn.neural_network._multilayer_perceptron.BaseMultilayerPerceptron",
                "sklearn.linear_model._base.LinearModel",
                "sklearn.linear_model._base.LinearClassifierMixin",
                "sklearn.pipeline.Pipeline",
            ),
            suffixes=(".npz",),
            accepts=("onnx",),
        ),
    )
