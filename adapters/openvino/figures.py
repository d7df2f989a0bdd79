"""Time and bytes of each op: by OpenVINO's own counters, and by what stands in the saved files."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from octavo.plugin import REST, Step, by_op, owners_of

from . import OpenVinoConfig
from .convolving import BACK
from .describe import MOVERS, STEP, Description
from .prepare import WITHOUT_BIAS, fused_names
from .running import Executable, compile_model
from .witness import names_of, plain

_PRODUCTS = ("linear", "conv", "conv_transpose", "matmul")
_PRODUCT_LAYERS = ("FullyConnected", "Convolution", "Deconvolution", "MatMul")


@dataclass(frozen=True)
class Owners:
    """Whose the nodes of a compiled or saved model are, by all names that they may go by.

    What octavo or the compiler writes is not there, nor what only makes constants: it serves what
    reads it.

    Attributes:
        ops: Name -> op; :data:`REST` for what is part of none.
        products: The same for products alone, which may have the name of a factor behind them.
    """

    ops: Mapping[str, str]
    products: Mapping[str, str]

    def of(self, name: str, layer: str = "") -> str | None:
        """Return whose a node is; None where its name is not known.

        Args:
            name: Its own, or one that it was made of.
            layer: Its type in an execution graph.
        """
        if layer in _PRODUCT_LAYERS and name in self.products:
            return self.products[name]
        return self.ops.get(name)


def owners_in(found: Description, source: Any) -> Owners:
    """Return whose the nodes of a model are.

    Args:
        found: The prepared model.
        source: The model that it was made of, whose names the float model has.
    """
    ops: dict[str, str] = {}
    products: dict[str, str] = {}
    nodes = {node.get_friendly_name(): node for node in found.model.get_ordered_ops()}
    own = [(name, name) for name in found.sites]
    parts = [(part, op) for op, site in found.sites.items() for part in site.nodes]
    for name, op in (*own, *parts):
        for each in (name, *fused_names(nodes[name])):
            ops.setdefault(each, op)
            ops.setdefault(f"{each}{WITHOUT_BIAS}", op)
            if found.sites[op].op.type in _PRODUCTS:
                products.setdefault(each, op)
    for model in (found.model, source):
        for name in _computing(model):
            ops.setdefault(name, REST)
    return Owners(ops, products)


def _computing(model: Any) -> list[str]:
    """Return the nodes that compute more than constants; none of a rescaling's steps."""
    fixed: set[str] = set()
    found = []
    for node in model.get_ordered_ops():
        read = [value.get_node().get_name() for value in node.input_values()]
        name = node.get_friendly_name()
        if node.get_type_name() in MOVERS:
            # To what shape may be computed: ONNX's biases are brought to the rank of an input.
            read = read[:1]
        if node.get_type_name() == "Constant" or (read and fixed.issuperset(read)):
            fixed.add(node.get_name())
        elif not name.startswith(STEP):
            found.append(name)
    return found


def profile(
    model: Any,
    config: OpenVinoConfig,
    owners: Owners,
    fed: Mapping[str, np.ndarray],
    seconds: float,
) -> dict[str, float]:
    """Return op -> milliseconds of a call, in a compiled model of its own that counts.

    Args:
        model: An ``ov.Model``.
        config: The settings to compile it under.
        owners: Whose its nodes are.
        fed: One batch.
        seconds: About how long the calls may take together.
    """
    # A blob of the cache may have been compiled without counters, or be taken up later with them.
    compiled = compile_model(model, config, PERF_COUNT=True, CACHE_DIR="")
    runs = Executable(compiled)
    owner = _owner_by_name(compiled.get_runtime_model(), owners)
    runs.run(fed)
    calls: list[dict[str, float]] = []
    whole: list[float] = []
    end = time.perf_counter() + seconds
    while not whole or time.perf_counter() < end:
        start = time.perf_counter()
        runs.run(fed)
        whole.append((time.perf_counter() - start) * 1e3)
        calls.append(_times(runs.request.profiling_info, owner))
    return by_op(calls, whole)


def _times(counted: Iterable[Any], owner: Mapping[str, str]) -> dict[str, float]:
    """Return the milliseconds of each op in the last call."""
    found: dict[str, float] = {}
    for node in counted:
        # What is fused into another node, or folded, is listed too, and did not run.
        if node.status == node.EXECUTED:
            op = owner.get(node.node_name, REST)
            found[op] = found.get(op, 0.0) + node.real_time.total_seconds() * 1e3
    return found


def _owner_by_name(graph: Any, owners: Owners) -> dict[str, str]:
    """Return the op of each node of an execution graph."""
    nodes = graph.get_ordered_ops()
    steps = []
    for node in nodes:
        reads = [value.get_node().get_name() for value in node.input_values()]
        trails = BACK in node.get_friendly_name()
        steps.append(Step(_owner(node, owners), reads, [node.get_name()], trails))
    found: dict[str, str] = {}
    for node, op in zip(nodes, owners_of(steps), strict=True):
        name = node.get_friendly_name()
        # The counters know names alone: where two nodes share one, it is not told whose time it is.
        found[name] = op if found.get(name, op) == op else REST
    return found


def _owner(node: Any, owners: Owners) -> str | None:
    layer, names = names_of(node)
    if layer == "Const":
        return None
    told = list(filter(None, (owners.of(name, layer) for name in names)))
    ops = dict.fromkeys(op for op in told if op != REST)
    # A kernel made of a whole expression has no main op that the others are the tail of.
    if ops and not (layer == "Subgraph" and len(ops) > 1):
        return next(iter(ops))
    return REST if told else None


def bytes_by_op(path: Path, owners: Owners) -> dict[str, int]:
    """Return op -> bytes of its constants in the file of weights.

    Constants of the same bytes are one there: they count once, for the first that reads them.

    Args:
        path: The ``.xml``, which says where each constant lies (OpenVINO's IR, version 11).
        owners: Whose its nodes are.
    """
    root = ElementTree.parse(path).getroot()
    reads: dict[str, list[str]] = {}
    for edge in root.iterfind("edges/edge"):
        reads.setdefault(edge.attrib["to-layer"], []).append(edge.attrib["from-layer"])
    layers = list(root.iterfind("layers/layer"))
    steps = []
    for layer in layers:
        name, number = layer.attrib["name"], layer.attrib["id"]
        is_constant = layer.attrib["type"] == "Const"
        owner = None if is_constant else owners.of(plain(name))
        steps.append(Step(owner, reads.get(number, ()), [number], BACK in name))
    found: dict[str, int] = {}
    counted: set[str] = set()
    for layer, op in zip(layers, owners_of(steps), strict=True):
        # Those in the body of a loop are the loop's.
        for data in layer.iter("data"):
            offset = data.get("offset")
            if offset is not None and offset not in counted:
                counted.add(offset)
                found[op] = found.get(op, 0) + int(data.attrib["size"])
    return found
