"""The graph of whatever the NumPy backend opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.adapters.numpy.graph import Graph
from octavo.core.errors import ModelError

from .archive import load_graph


def read(source: Any) -> Graph:
    """Return the graph of anything that this backend opens.

    Args:
        source: A Graph, an ONNX model (path, bytes or ModelProto), a fitted scikit-learn estimator,
            or the path of a .npz file.

    Raises:
        ModelError: If it is none of those.
    """
    if isinstance(source, Graph):
        return source
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        return _read_file(Path(source))
    if isinstance(source, bytes) or type(source).__name__ == "ModelProto":
        return _read_onnx(source)
    if hasattr(source, "get_params") and hasattr(source, "fit"):
        # scikit-learn is an extra: its reader is imported only for its models.
        from .estimators import from_estimator

        return from_estimator(source)
    raise ModelError(
        f"the NumPy backend cannot open a {type(source).__name__}: give a Graph, an ONNX model, "
        "a fitted scikit-learn estimator or a .npz path"
    )


def _read_file(path: Path) -> Graph:
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}")
    if path.suffix == ".npz":
        return load_graph(path)[0]
    return _read_onnx(path)


def _read_onnx(source: Any) -> Graph:
    # onnx is an extra: its reader is imported only for its models.
    from .onnx_reader import from_onnx

    return from_onnx(source)
