"""A graph as one .npz file, without pickle.

It holds ``graph.json`` (structure) and ``data.npy`` (every array, one after the other).
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.adapters.numpy.kernels.casting import dtype_of
from octavo.core.errors import ModelError
from octavo.core.values.graph import InputInfo

FORMAT = 2
"""What is written.

Since 2, weights in codes have scales in the format of their spec and zero points packed at the
codes' width, and no table of what codes stand for.
"""

READ = (1, 2)
"""What is read."""

_ALIGN = 16  # bytes; arrays are read as views of the data
_EPOCH = (1980, 1, 1, 0, 0, 0)  # fixed, so that equal models are equal files


def save_graph(graph: Graph, path: Path, **extra: Any) -> None:
    """Write a graph, and JSON-ready ``extra`` entries beside it."""
    writer = _Writer()
    structure = writer.graph(graph)
    table = {"format": FORMAT, **structure, "arrays": writer.arrays, **extra}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False)
    content = np.frombuffer(b"".join(writer.chunks), dtype=np.uint8)
    data = io.BytesIO()
    np.lib.format.write_array(data, content, allow_pickle=False)
    graph_entry = zipfile.ZipInfo("graph.json", _EPOCH)
    data_entry = zipfile.ZipInfo("data.npy", _EPOCH)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(graph_entry, text, zipfile.ZIP_DEFLATED)
        archive.writestr(data_entry, data.getvalue(), zipfile.ZIP_STORED)


def load_graph(path: Path) -> tuple[Graph, dict[str, Any]]:
    """Read what :func:`save_graph` wrote; return the graph and the whole table.

    Raises:
        ModelError: If the file is damaged, or no NumPy graph.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            table = json.loads(archive["graph.json"])
            data = archive["data"]
        if table["format"] not in READ:
            raise ModelError(
                f"{path} is written in format {table['format']}; this octavo reads formats 1 to "
                f"{FORMAT}. Upgrade octavo"
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
    """Collects arrays, and turns graphs into JSON that refers to them by number."""

    def __init__(self) -> None:
        self.arrays: list[list[Any]] = []
        self.chunks: list[bytes] = []
        self._offset = 0

    def graph(self, graph: Graph) -> dict[str, Any]:
        inputs = []
        for info in graph.inputs:
            shape = None if info.shape is None else list(info.shape)
            inputs.append([info.name, shape, info.dtype])
        # Arrays are numbered in the order in which they are added: initializers come first.
        initializers = {}
        for name, array in graph.initializers.items():
            initializers[name] = self._array(array)
        return {
            "opset": graph.opset,
            "inputs": inputs,
            "outputs": list(graph.outputs),
            "initializers": initializers,
            "nodes": [self._node(node) for node in graph.nodes],
        }

    def _node(self, node: Node) -> list[Any]:
        attributes = {}
        for key, value in node.attributes.items():
            attributes[key] = self._attribute(value)
        return [node.op, node.name, list(node.inputs), list(node.outputs), attributes]

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, Graph):
            return {"graph": self.graph(value)}
        if isinstance(value, np.ndarray):
            return {"array": self._array(value)}
        return list(value) if isinstance(value, tuple) else value

    def _array(self, array: Array) -> int:
        """Add an array and return its number."""
        raw = np.ascontiguousarray(array).tobytes()
        padding = -len(raw) % _ALIGN
        self.arrays.append([array.dtype.name, list(array.shape), self._offset])
        self.chunks += [raw, bytes(padding)]
        self._offset += len(raw) + padding
        return len(self.arrays) - 1


def _array(row: list[Any], data: Array) -> Array:
    """Return an array as a view of the file's data; nobody may write to it."""
    name, shape, offset = row
    dtype = dtype_of(name)
    end = offset + dtype.itemsize * math.prod(shape)
    is_negative = offset < 0 or any(size < 0 for size in shape)
    if is_negative or end > data.size:
        raise ModelError(
            f"an array of shape {tuple(shape)} reaches beyond the file's data; the file is damaged"
        )
    array = data[offset:end].view(dtype).reshape(shape)
    array.flags.writeable = False
    return array


def _graph(table: dict[str, Any], arrays: list[Array]) -> Graph:
    nodes = []
    for op, name, inputs, outputs, raw in table["nodes"]:
        attributes = {key: _attribute(value, arrays) for key, value in raw.items()}
        nodes.append(Node(op, tuple(inputs), tuple(outputs), name, attributes))
    infos = []
    for name, lengths, dtype in table["inputs"]:
        shape = None if lengths is None else tuple(lengths)
        infos.append(InputInfo(name, shape, dtype))
    initializers = {}
    for name, number in table["initializers"].items():
        initializers[name] = arrays[number]
    outputs = tuple(table["outputs"])
    return Graph(tuple(nodes), initializers, tuple(infos), outputs, table["opset"])


def _attribute(value: Any, arrays: list[Array]) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    return _graph(value["graph"], arrays)
