"""A graph as one .npz file: ``graph.json`` (structure) and ``data.npy`` (every array, one after the other). No pickle."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Graph, Node
from octavo.core.errors import ModelError
from octavo.core.values.graph import InputInfo

FORMAT = 1
_ALIGN = 16
_EPOCH = (1980, 1, 1, 0, 0, 0)  # fixed, so that equal models are equal files


def save_graph(graph: Graph, path: Path, **extra: Any) -> None:
    """Write a graph, and JSON-ready ``extra`` entries beside it."""
    writer = _Writer()
    table = {"format": FORMAT, **writer.graph(graph), "arrays": writer.arrays, **extra}
    data = io.BytesIO()
    np.lib.format.write_array(
        data, np.frombuffer(b"".join(writer.chunks), dtype=np.uint8), allow_pickle=False
    )
    with zipfile.ZipFile(path, "w") as archive:
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False)
        archive.writestr(zipfile.ZipInfo("graph.json", _EPOCH), text, zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("data.npy", _EPOCH), data.getvalue(), zipfile.ZIP_STORED)


def load_graph(path: Path) -> tuple[Graph, dict[str, Any]]:
    """Read what :func:`save_graph` wrote; return the graph and the whole table.

    Raises:
        ModelError: If the file is damaged, or no NumPy graph.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            table = json.loads(archive["graph.json"])
            data = archive["data"]
        if table["format"] != FORMAT:
            raise ModelError(
                f"{path} is written in format {table['format']}; this octavo reads format {FORMAT}. Upgrade octavo"
            )
        arrays = [_array(row, data) for row in table["arrays"]]
        return _graph(table, arrays).check(), table
    except ModelError:
        raise
    except Exception as error:  # a hostile or truncated file fails in many ways
        raise ModelError(
            f"{path} is no NumPy graph that octavo wrote: {type(error).__name__}: {error}"
        ) from error


class _Writer:
    def __init__(self) -> None:
        self.arrays: list[list[Any]] = []
        self.chunks: list[bytes] = []
        self._offset = 0

    def array(self, array: np.ndarray) -> dict[str, int]:
        raw = np.ascontiguousarray(array).tobytes()
        self.arrays.append([array.dtype.name, list(array.shape), self._offset])
        padding = -len(raw) % _ALIGN
        self.chunks += [raw, bytes(padding)]
        self._offset += len(raw) + padding
        return {"array": len(self.arrays) - 1}

    def graph(self, graph: Graph) -> dict[str, Any]:
        return {
            "opset": graph.opset,
            "inputs": [
                [i.name, None if i.shape is None else list(i.shape), i.dtype] for i in graph.inputs
            ],
            "outputs": list(graph.outputs),
            "initializers": {k: self.array(v)["array"] for k, v in graph.initializers.items()},
            "nodes": [
                [
                    n.op,
                    n.name,
                    list(n.inputs),
                    list(n.outputs),
                    {k: self._attribute(v) for k, v in n.attributes.items()},
                ]
                for n in graph.nodes
            ],
        }

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, Graph):
            return {"graph": self.graph(value)}
        if isinstance(value, np.ndarray):
            return self.array(value)
        return list(value) if isinstance(value, tuple) else value


def _array(row: list[Any], data: np.ndarray) -> np.ndarray:
    name, shape, offset = row
    dtype = _dtype(name)
    size = dtype.itemsize * math.prod(shape)
    if offset < 0 or any(s < 0 for s in shape) or offset + size > data.size:
        raise ModelError(
            f"an array of shape {tuple(shape)} reaches beyond the file's data; the file is damaged"
        )
    array = data[offset : offset + size].view(dtype).reshape(shape)
    array.flags.writeable = False
    return array


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # bfloat16, int4, float8: NumPy knows them by name only after this import

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


def _graph(table: dict[str, Any], arrays: list[np.ndarray]) -> Graph:
    def attribute(value: Any) -> Any:
        if isinstance(value, dict):
            return arrays[value["array"]] if "array" in value else _graph(value["graph"], arrays)
        return tuple(value) if isinstance(value, list) else value

    return Graph(
        tuple(
            Node(op, tuple(i), tuple(o), name, {k: attribute(v) for k, v in a.items()})
            for op, name, i, o, a in table["nodes"]
        ),
        {k: arrays[i] for k, i in table["initializers"].items()},
        tuple(InputInfo(n, None if s is None else tuple(s), d) for n, s, d in table["inputs"]),
        tuple(table["outputs"]),
        table["opset"],
    )
