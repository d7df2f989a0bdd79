"""The graph as the core sees it: ops, values, groups."""

from __future__ import annotations

import math
from collections.abc import Mapping

from octavo.adapters.numpy.graph import Graph, Node
from octavo.adapters.numpy.kernels.registry import Build
from octavo.adapters.numpy.kernels.spatial.geometry import Geometry
from octavo.core.numerics.channels import EVERY, SCALE_ALONE, norm_steps
from octavo.core.values.coverage import unclaimed_of
from octavo.core.values.graph import Group, ModelView, Op, Weight, tied_groups

from .census import census

_TYPES = {
    "Gemm": "linear", "Conv": "conv", "ConvTranspose": "conv_transpose", "MatMul": "matmul", "LSTM": "lstm", "GRU": "gru",
    "Attention": "attention", "Add": "add", "Sum": "add", "Mul": "mul", "Concat": "concat", "Relu": "relu", "Gelu": "gelu",
    "Swish": "silu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softmax": "softmax", "MaxPool": "max_pool", "AveragePool": "avg_pool",
    "GlobalAveragePool": "avg_pool", "BatchNormalization": "batch_norm", "LayerNormalization": "layer_norm",
    "RMSNormalization": "rms_norm", "Reshape": "reshape", "Flatten": "reshape", "Resize": "resize",
}  # fmt: skip

Shapes = Mapping[str, tuple[int, ...]]
Consumers = Mapping[str, list[Node]]


def describe(graph: Graph, shapes: Shapes) -> ModelView:
    """Return the view of an optimised graph.

    Args:
        graph: After :func:`.passes.optimised`.
        shapes: Shapes of values for one batch, from a traced run; may be empty.
    """
    users: dict[str, list[str]] = {}
    for node in graph.nodes:
        weight = weight_of(graph, node)
        if weight:
            users.setdefault(weight, []).append(node.name)
    batch = next((shapes[i.name][0] for i in graph.inputs if shapes.get(i.name)), 1)
    ops = tuple(_op(graph, node, users, shapes, batch) for node in graph.nodes)
    groups = (*tied_groups(ops), *rescale_groups(graph, ops))
    unclaimed = unclaimed_of(census(graph), ops)
    return ModelView(ops, groups, graph.inputs, graph.outputs, _notes(graph), unclaimed)


def weight_of(graph: Graph, node: Node) -> str:
    """Return the name of a node's weight, or ''."""
    if node.op in ("Gemm", "Conv", "ConvTranspose") and node.inputs[1] in graph.initializers:
        return node.inputs[1]
    if (
        node.op == "Gather"
        and node.inputs[0] in graph.initializers
        and graph.initializers[node.inputs[0]].ndim == 2
    ):
        return node.inputs[0]
    return ""


def channel_axis(node: Node) -> int:
    """Return the axis of a weight's output channels."""
    if node.op == "Gemm":
        return 0 if node.attributes.get("transB", 0) else 1
    return 1 if node.op == "ConvTranspose" else 0


def _op(graph: Graph, node: Node, users: Mapping[str, list[str]], shapes: Shapes, batch: int) -> Op:
    kind = _TYPES.get(node.op, node.op.lower())
    name = weight_of(graph, node)
    weight = None
    if name:
        array = graph.initializers[name]
        others = tuple(n for n in users[name] if n != node.name)
        made_of = tuple(source.name for source in graph.origins.get(name, ()))
        weight = Weight(name, array.shape, str(array.dtype), channel_axis(node), others, made_of)
        kind = "embedding" if node.op == "Gather" else kind
    bias = (
        node.inputs[2]
        if node.op in ("Gemm", "Conv")
        and len(node.inputs) > 2
        and node.inputs[2] in graph.initializers
        else None
    )
    attributes = {
        k: v
        for k, v in node.attributes.items()
        if isinstance(v, (int, float, str))
        or (isinstance(v, tuple) and all(type(i) is int for i in v))
    }
    if node.op == "Conv" and weight:
        attributes = {**attributes, **_geometry(node, weight.shape[2:], shapes)}
    return Op(
        node.name,
        kind if weight or node.op != "Gemm" else "matmul",
        tuple(v for v in node.inputs if v and v not in graph.initializers),
        tuple(v for v in node.outputs if v),
        weight,
        bias,
        _macs(graph, node, shapes, batch),
        attributes,
        _out_of_reach(graph, node, bias),
    )


def _geometry(
    node: Node, kernel: tuple[int, ...], shapes: Shapes
) -> dict[str, int | tuple[int, ...]]:
    """State strides, dilations, groups and pads in full; what auto_pad means is worked out where the input's shape is known."""
    geometry = Geometry.read(Build(node), kernel)
    found: dict[str, int | tuple[int, ...]] = {
        "strides": geometry.strides, "dilations": geometry.dilations, "groups": node.attributes.get("group", 1), "pads": geometry.pads,
    }  # fmt: skip
    known = shapes.get(node.inputs[0])
    if known is not None and len(known) == len(kernel) + 2:
        pairs = geometry.padding(tuple(known[2:]))
        found["pads"] = (*(b for b, _ in pairs), *(a for _, a in pairs))
    return found


def _out_of_reach(graph: Graph, node: Node, bias: str | None) -> str:
    if node.op in ("LSTM", "GRU", "RNN"):
        return "the NumPy backend has no integer kernel for recurrent layers"
    if node.op not in ("Gemm", "Conv"):
        return ""
    if node.inputs[1] not in graph.initializers:
        return "its weight is computed at run time"
    if graph.initializers[node.inputs[1]].dtype.name not in ("float32", "float16", "bfloat16"):
        return f"its weight is {graph.initializers[node.inputs[1]].dtype}"
    if len(node.inputs) > 2 and node.inputs[2] and bias is None:
        return "its bias is computed at run time"
    if node.op == "Gemm":
        if (
            node.attributes.get("transA", 0)
            or node.attributes.get("alpha", 1.0) != 1.0
            or node.attributes.get("beta", 1.0) != 1.0
        ):
            return "it is a Gemm with transA, alpha or beta"
        if bias is not None and graph.initializers[bias].ndim != 1:
            return "its bias is no vector"
    return ""


def _macs(graph: Graph, node: Node, shapes: Shapes, batch: int) -> int | None:
    out = shapes.get(node.outputs[0])
    if out is None:
        return None
    if node.op == "Conv":
        w = graph.initializers.get(node.inputs[1])
        return None if w is None else math.prod(out) * math.prod(w.shape[1:]) // batch
    if node.op in ("Gemm", "MatMul"):
        a = shapes.get(node.inputs[0]) or (
            graph.initializers[node.inputs[0]].shape
            if node.inputs[0] in graph.initializers
            else None
        )
        return None if not a else math.prod(out) * a[-1] // batch
    return None


_FREE = ("Gelu", "Swish", "Mul")
_NORMS = ("LayerNormalization", "RMSNormalization")


def rescale_groups(graph: Graph, ops: tuple[Op, ...]) -> tuple[Group, ...]:
    """Find values whose channels can be changed: norm, linear or convolution -> linear or convolution.

    A ReLU between them commutes with positive factors. Every reader of the value must be an op that can take the factors
    into its weight, and the value must not leave the graph. Where a norm, GELU or gate does not write for such readers alone, the
    linear ops that read it change it by steps of their own.
    """
    by_name = {op.name: op for op in ops}
    consumers = graph.consumers()
    found = []
    for node in graph.nodes:
        value = node.outputs[0]
        readers = consumers.get(value, [])
        if (
            _divisible(consumers, graph, node, by_name[node.name])
            and value not in graph.outputs
            and not any(node.outputs[1:])
        ):
            channels = channels_of(graph, node)
            if readers and all(
                _multipliable(consumers, graph, r, value, by_name[r.name], channels, node.op)
                for r in readers
            ):
                norm = tuple(v for v in node.inputs[1:3] if v) if node.op in _NORMS else ()
                gain, shift = (*norm, "", "")[:2]
                takes = SCALE_ALONE if node.op == "Conv" else EVERY
                found.append(
                    Group(
                        f"rescale:{value}", "rescale", tuple(r.name for r in readers), node.name, channels, value,
                        gain=gain, shift=shift, takes=takes, online=takes & _online(node),
                    )
                )  # fmt: skip
                continue
        if node.op in (*_FREE, *_NORMS) or node.attributes.get("activation", "") in _FREE:
            linear = [
                r
                for r in readers
                if _multipliable(consumers, graph, r, value, by_name[r.name], 0, node.op)
            ]
            widths = {
                w.shape[1 - w.channel_axis]
                for r in linear
                if (w := by_name[r.name].weight) is not None
            }
            if len(widths) == 1:
                members = tuple(r.name for r in linear)
                found.append(
                    Group(
                        f"rescale:{value}",
                        "rescale",
                        members,
                        "",
                        widths.pop(),
                        value,
                        takes=EVERY,
                        online=EVERY,
                    )
                )
    return tuple(found)


def _online(node: Node) -> frozenset[str]:
    """Return what a producer cannot take in."""
    if node.op in _NORMS:
        has_shift = len(node.inputs) > 2 and bool(node.inputs[2])
        return norm_steps(has_shift=has_shift)
    return frozenset({"shift", "rotation"} if node.attributes.get("activation", "") else ())


def channels_of(graph: Graph, node: Node) -> int:
    """Return the length of the channel axis that a producer writes."""
    array = graph.initializers[node.inputs[1]]
    return array.shape[channel_axis(node)] if node.op in ("Conv", "Gemm") else array.size


def _divisible(consumers: Consumers, graph: Graph, node: Node, op: Op) -> bool:
    if node.op in _NORMS:
        constants = all(v in graph.initializers for v in node.inputs[1:] if v)
        return (
            constants
            and node.attributes.get("axis", -1) == -1
            and graph.initializers[node.inputs[1]].ndim == 1
            and _alone(consumers, graph, node)
        )
    if node.attributes.get("activation", "") not in ("", "Relu"):
        return False  # a positive factor does not pass through GELU or tanh
    return (
        node.op in ("Conv", "Gemm")
        and op.weight is not None
        and not op.out_of_reach
        and _alone(consumers, graph, node)
    )


def _multipliable(
    consumers: Consumers, graph: Graph, node: Node, value: str, op: Op, channels: int, producer: str
) -> bool:
    if (
        node.inputs[0] != value
        or op.weight is None
        or op.out_of_reach
        or not _alone(consumers, graph, node)
    ):
        return False
    if node.op == "Gemm" and producer != "Conv":
        return not channels or op.weight.shape[1 - channel_axis(node)] == channels
    if node.op == "Conv" and producer == "Conv":
        groups = node.attributes.get("group", 1)
        return bool(op.weight.shape[1] * groups == channels)
    return False


def _alone(consumers: Consumers, graph: Graph, node: Node) -> bool:
    """True if no other node reads the tensors that a rescaling would change."""
    return all(
        len(consumers[v]) == 1 and v not in graph.outputs
        for v in node.inputs[1:3]
        if v in graph.initializers
    )


def _notes(graph: Graph) -> tuple[str, ...]:
    bodies = [n for n in graph.nodes if any(isinstance(a, Graph) for a in n.attributes.values())]
    return tuple(f"the bodies of {n.name!r} ({n.op}) stay in float" for n in bodies)
