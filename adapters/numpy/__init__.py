"""The NumPy backend's card. Imports no framework, and NumPy's graph only when a model is opened."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import AdapterPart, Part, PartConfig


class NumpyConfig(PartConfig):
    """Settings of the NumPy backend.

    Attributes:
        scratch: Upper bound of the scratch memory of one convolution, per thread, in bytes.
        threads: Threads that share the rows of one operator; 0 for all cores that the process may
            use.
    """

    kind: Literal["numpy"] = "numpy"
    scratch: int = Field(default=2 << 20, ge=1 << 16, le=1 << 40)
    threads: int = Field(default=0, ge=0, le=1024)


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


class StandaloneConfig(PartConfig):
    """A folder with the model and a runner in one file that needs NumPy only."""

    kind: Literal["standalone"] = "standalone"


@hookimpl
def octavo_exporters() -> Iterable[Part[Any]]:
    """Offer the standalone export."""
    return (
        Part(
            "standalone",
            "octavo.adapters.numpy.formats.standalone:export",
            StandaloneConfig,
            "the model and a runner of one file that needs NumPy only",
        ),
    )
