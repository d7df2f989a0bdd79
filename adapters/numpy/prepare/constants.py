"""Constant folding: what depends on initializers alone is computed when the model is opened."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.adapters.numpy.kernels import Build, kernel
from octavo.adapters.numpy.kernels.fallback import native
from octavo.core.values.coverage import counts
from octavo.core.values.graph import HeldWeight

Origins = Mapping[str, tuple[HeldWeight, ...]]

_RANDOM = ("Random", "Bernoulli", "Multinomial")
"""How the names of operators begin whose results differ from run to run."""

_LIMIT = 1 << 22  # elements of the largest result that is kept in the graph


def fold_constants(graph: Graph, limit: int = _LIMIT) -> Graph:
    """Compute what depends on initializers alone.

    Args:
        graph: Any.
        limit: Elements of the largest result that is kept.
    """
    constants, origins = dict(graph.initializers), dict(graph.origins)
    nodes = []
    for node in graph.nodes:
        results = _computed(graph, node, constants)
        if results is None or any(r.size > limit for r in results.values()):
            nodes.append(node)
            continue
        made_of = _sources(node, constants, origins)
        constants.update(results)
        origins.update(dict.fromkeys(results, made_of))
    return graph.with_(nodes=tuple(nodes), initializers=constants, origins=origins)


def _computed(
    graph: Graph, node: Node, constants: Mapping[str, Array]
) -> dict[str, Array] | None:
    """Return a node's values by name; None where they differ from run to run."""
    if not _is_constant(graph, node, constants):
        return None
    known = {name: constants[name] for name in node.inputs if name}
    run, allocates = kernel(Build(node, known, graph.opset))
    given = [known.get(name) for name in node.inputs]
    result = run(*given, empty=np.empty) if allocates else run(*given)
    values = result if isinstance(result, tuple) else (result,)
    found = {}
    # A kernel may return more than the node's outputs.
    for name, value in zip(node.outputs, values, strict=False):
        if not isinstance(value, (np.ndarray, np.generic)):
            return None
        if name:
            found[name] = np.asarray(value)
    return found


def _is_constant(graph: Graph, node: Node, constants: Mapping[str, Array]) -> bool:
    """True if a node computes the same inner values in every run."""
    if node.bodies() or node.op.startswith(_RANDOM):
        return False
    read = set(node.inputs) - {""}
    if not read <= constants.keys():
        return False
    is_inner = set(graph.outputs).isdisjoint(node.outputs)
    return is_inner and native(node, graph.opset)


def _sources(
    node: Node, constants: Mapping[str, Array], origins: Origins
) -> tuple[HeldWeight, ...]:
    """Return the weights that a folded node was computed from.

    There are none for a mask or a table of positions.
    """
    found: dict[str, HeldWeight] = {}
    for name in node.inputs:
        if not name:
            continue
        known = origins.get(name)
        if known is None:
            array = constants[name]
            own = HeldWeight(name, tuple(array.shape), str(array.dtype))
            known = (own,) if counts(own.shape, own.dtype) else ()
        found.update((weight.name, weight) for weight in known)
    return tuple(found.values())
