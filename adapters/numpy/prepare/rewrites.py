"""Function-preserving rewrites of a float graph: constants folded, batch norm folded, activations fused, names kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from octavo.adapters.numpy.graph import Graph, Node
from octavo.adapters.numpy.kernels import ACTIVATIONS, Build, kernel
from octavo.adapters.numpy.kernels.fallback import native
from octavo.core.values.coverage import counts
from octavo.core.values.graph import HeldWeight

from .fusion import fuse_attention, fuse_gelu

_FOLDS = ("Conv", "Gemm")


def optimised(graph: Graph) -> Graph:
    """Return the graph as the ops of the tuning space see it."""
    for rewrite in (
        fold_constants,
        drop_identities,
        fold_batch_norm,
        linear_layers,
        fuse_gelu,
        drop_unused,
        fuse_attention,
        drop_unused,
        fuse_activations,
    ):
        graph = rewrite(graph)
    return graph.check()


def _replace(graph: Graph, nodes: list[Node], constants: Mapping[str, np.ndarray]) -> Graph:
    return graph.with_(nodes=tuple(nodes), initializers={**graph.initializers, **constants})


def fold_constants(graph: Graph, limit: int = 1 << 22) -> Graph:
    """Compute what depends on initializers alone, where the result has at most ``limit`` elements."""
    constants, origins = dict(graph.initializers), dict(graph.origins)
    nodes = []
    for node in graph.nodes:
        pure = not any(
            isinstance(a, Graph) for a in node.attributes.values()
        ) and not node.op.startswith(("Random", "Bernoulli", "Multinomial"))
        pure = pure and native(node, graph.opset)
        if (
            pure
            and all(v in constants or not v for v in node.inputs)
            and not set(node.outputs) & set(graph.outputs)
        ):
            run, allocates = kernel(
                Build(node, {v: constants[v] for v in node.inputs if v}, graph.opset)
            )
            result = run(
                *[constants.get(v) for v in node.inputs],
                **({"empty": np.empty} if allocates else {}),
            )
            results = result if isinstance(result, tuple) else (result,)
            if all(isinstance(r, (np.ndarray, np.generic)) and r.size <= limit for r in results):
                constants.update(
                    {v: np.asarray(r) for v, r in zip(node.outputs, results, strict=False) if v}
                )
                made_of = _sources(node, constants, origins)
                origins.update({v: made_of for v in node.outputs if v})
                continue
        nodes.append(node)
    return graph.with_(nodes=tuple(nodes), initializers=constants, origins=origins)


def _sources(
    node: Node, constants: Mapping[str, np.ndarray], origins: Mapping[str, tuple[HeldWeight, ...]]
) -> tuple[HeldWeight, ...]:
    """Return the weights that a folded node was computed from: none for a mask or a table of positions."""
    found: dict[str, HeldWeight] = {}
    for name in (v for v in node.inputs if v):
        known = origins.get(name)
        if known is None:
            array = constants[name]
            own = HeldWeight(name, tuple(array.shape), str(array.dtype))
            known = (own,) if counts(own.shape, own.dtype) else ()
        found.update((weight.name, weight) for weight in known)
    return tuple(found.values())


def drop_identities(graph: Graph) -> Graph:
    """Take out Identity nodes whose value is not an output of the graph."""
    other: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        if node.op == "Identity" and node.outputs[0] not in graph.outputs:
            other[node.outputs[0]] = other.get(node.inputs[0], node.inputs[0])
        else:
            nodes.append(node)
    if not other or any(isinstance(a, Graph) for n in nodes for a in n.attributes.values()):
        return graph
    return graph.with_(
        nodes=tuple(n.with_(inputs=tuple(other.get(v, v) for v in n.inputs)) for n in nodes)
    )


def fold_batch_norm(graph: Graph) -> Graph:
    """Fold a batch norm behind a convolution or Gemm into its weight and bias (Jacob et al. 2018, section 3.2)."""
    consumers, producers = graph.consumers(), graph.producers()
    constants: dict[str, np.ndarray] = {}
    changed: dict[str, Node | None] = {}
    for norm in graph.nodes:
        if (
            norm.op != "BatchNormalization"
            or len([v for v in norm.outputs if v]) != 1
            or norm.attributes.get("training_mode", 0)
        ):
            continue
        before = producers.get(norm.inputs[0])
        if (
            before is None
            or before.op not in _FOLDS
            or before.name in changed
            or before.outputs[0] in graph.outputs
        ):
            continue
        if len(consumers[before.outputs[0]]) != 1 or before.attributes.get("activation"):
            continue
        weight = graph.initializers.get(before.inputs[1])
        moments = [graph.initializers.get(v) for v in norm.inputs[1:5]]
        has_bias = len(before.inputs) > 2 and before.inputs[2] != ""
        bias = graph.initializers.get(before.inputs[2]) if has_bias else None
        if weight is None or any(m is None for m in moments) or (has_bias and bias is None):
            continue
        plain_gemm = (
            before.attributes.get("alpha", 1.0) == 1.0 and before.attributes.get("beta", 1.0) == 1.0
        )
        if before.op == "Gemm" and not plain_gemm:
            continue
        gamma, beta, mean, variance = (np.asarray(m, np.float64) for m in moments)
        factor = gamma / np.sqrt(variance + norm.attributes.get("epsilon", 1e-5))
        shift = beta - mean * factor + (0.0 if bias is None else bias * factor)
        axis = 0 if before.op == "Conv" or before.attributes.get("transB", 0) else 1
        names = (_own(graph, before, 1, "weight"), _own(graph, before, 2, "bias"))
        constants[names[0]] = (
            weight * factor.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        ).astype(weight.dtype)
        constants[names[1]] = shift.astype(weight.dtype)
        changed[before.name] = before.with_(inputs=(before.inputs[0], *names), outputs=norm.outputs)
        changed[norm.name] = None
    nodes = [n for n in (changed.get(n.name, n) for n in graph.nodes) if n is not None]
    return _replace(graph, nodes, constants)


def _own(graph: Graph, node: Node, index: int, kind: str) -> str:
    """Return the name of a node's own changed tensor: the old one unless another node reads it too."""
    if index < len(node.inputs) and node.inputs[index]:
        old = node.inputs[index]
        if len(graph.consumers()[old]) == 1:
            return old
    return f"{node.name}.{kind}"


def linear_layers(graph: Graph) -> Graph:
    """Write MatMul with a constant matrix, and the Add of a bias behind it, as one Gemm: the linear layer it is."""
    consumers = graph.consumers()
    taken: dict[str, Node | None] = {}
    for node in graph.nodes:
        if (
            node.op != "MatMul"
            or node.inputs[1] not in graph.initializers
            or graph.initializers[node.inputs[1]].ndim != 2
        ):
            continue
        gemm = node.with_(op="Gemm")
        readers = consumers.get(node.outputs[0], [])
        if len(readers) == 1 and readers[0].op == "Add" and node.outputs[0] not in graph.outputs:
            add = readers[0]
            other = add.inputs[1] if add.inputs[0] == node.outputs[0] else add.inputs[0]
            bias = graph.initializers.get(other)
            if (
                bias is not None
                and bias.ndim == 1
                and bias.shape[0] == graph.initializers[node.inputs[1]].shape[1]
            ):
                gemm = gemm.with_(inputs=(*node.inputs, other), outputs=add.outputs)
                taken[add.name] = None
        taken[node.name] = gemm
    return graph.with_(
        nodes=tuple(n for n in (taken.get(n.name, n) for n in graph.nodes) if n is not None)
    )


def fuse_activations(graph: Graph) -> Graph:
    """Fuse an activation into the convolution or Gemm before it; GELU only where the weight is float32."""
    consumers, producers = graph.consumers(), graph.producers()
    changed: dict[str, Node | None] = {}
    for node in graph.nodes:
        activation = (
            "GeluTanh"
            if node.op == "Gelu" and node.attributes.get("approximate", "none") == "tanh"
            else node.op
        )
        if activation not in ACTIVATIONS:
            continue
        before = producers.get(node.inputs[0])
        if (
            before is None
            or before.op not in _FOLDS
            or before.attributes.get("activation")
            or before.outputs[0] in graph.outputs
        ):
            continue
        weight = graph.initializers.get(before.inputs[1])
        if activation != "Relu" and (weight is None or weight.dtype != np.float32):
            continue
        if len(consumers[before.outputs[0]]) == 1:
            changed[before.name] = before.with_(
                outputs=node.outputs, attributes={**before.attributes, "activation": activation}
            )
            changed[node.name] = None
    return graph.with_(
        nodes=tuple(n for n in (changed.get(n.name, n) for n in graph.nodes) if n is not None)
    )


def drop_unused(graph: Graph) -> Graph:
    """Take out nodes and initializers that no output depends on."""
    wanted = set(graph.outputs)
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if wanted & set(node.outputs):
            wanted.update(graph.reads(node))
            nodes.append(node)
    return graph.with_(
        nodes=tuple(reversed(nodes)),
        initializers={k: v for k, v in graph.initializers.items() if k in wanted},
    )
