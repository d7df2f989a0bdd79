"""Where a model can be quantized: nodes of the graph recognized as operations of the neutral vocabulary.

A site is one operation with what is fused into it (bias add, ReLU). Nodes that only move or select values (reshape,
transpose, max pool) are carriers: they take the codes of their input as they are, so nothing is to be chosen for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx_ir as ir

from octavo.adapters.onnx.prepare.already_quantized import ALREADY, describe, in_pairs
from octavo.adapters.onnx.prepare.folding import is_constant
from octavo.adapters.onnx.prepare.provenance import sources
from octavo.adapters.onnx.prepare.scopes import NOTES, walk
from octavo.core.values.graph import Attribute, InputInfo, ModelView, Op, Weight

from .groups import find_groups

CARRIERS = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Resize"}
)
"""Ops that ONNX Runtime runs on codes as they are; Resize where it repeats the nearest value and interpolates nothing."""

STEP = "octavo.step"
"""Marks nodes that a rescaling has put before a product: no operations of the model."""

_MOVING: Mapping[str, str] = {"MaxPool": "max_pool", "Resize": "resize"}

_PLAIN: Mapping[str, str] = {
    "Add": "add", "Mul": "mul", "Concat": "concat", "GlobalAveragePool": "avg_pool", "AveragePool": "avg_pool", "Softmax": "softmax",
    "Sigmoid": "sigmoid", "LeakyRelu": "leaky_relu", "Tanh": "tanh", "Relu": "relu", "Gelu": "gelu", "Erf": "erf", "LayerNormalization": "layer_norm",
    "BatchNormalization": "batch_norm", "Resize": "resize", "LSTM": "lstm", "GRU": "gru", "RNN": "rnn", "RMSNormalization": "rms_norm",
}  # fmt: skip

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Site:
    """One operation of the graph.

    Attributes:
        op: As the core sees it.
        node: The main node.
        last: The node whose first output is the op's output (a fused Add or Relu, else ``node``).
        inputs: Indices of the main node's activation inputs.
        roots: For each of them, the value that carriers brought there.
        weight: Index of its weight input, or None.
        bias: Value name of its bias, or None.
        activation: ``relu`` or ``clip`` (ReLU6) where one is fused, else empty.
    """

    op: Op
    node: ir.Node
    last: ir.Node
    inputs: tuple[int, ...]
    roots: tuple[str, ...] = ()
    weight: int | None = None
    bias: str | None = None
    activation: str = ""

    @property
    def before_activation(self) -> ir.Node:
        """The node whose output the fused activation reads; the last node where none is fused."""
        if not self.activation:
            return self.last
        before = self.last.inputs[0]
        producer = before.producer() if before is not None else None
        assert producer is not None
        return producer


@dataclass(frozen=True)
class Sites:
    """All sites of a graph, by op name, in execution order."""

    graph: ir.Graph
    sites: Mapping[str, Site]
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def outside(self) -> Mapping[str, Site]:
        """The sites that stand in no body of If, Loop or Scan."""
        return {name: site for name, site in self.sites.items() if site.node.graph is self.graph}

    @cached_property
    def view(self) -> ModelView:
        """The model as the core sees it."""
        ops = tuple(s.op for s in self.sites.values())
        inputs = tuple(_input_info(v) for v in self.graph.inputs)
        outputs = tuple(v.name or "" for v in self.graph.outputs)
        return ModelView(ops, find_groups(self.sites, self.outside), inputs, outputs, self.notes)


def find_sites(graph: ir.Graph) -> Sites:
    """Recognize the operations of a prepared graph and of the bodies in it, which are not changed."""
    found: dict[str, Site] = {}
    fused: set[ir.Node] = set()
    users: dict[str, list[str]] = {}
    integers: set[str] = set()
    for node in walk(graph):
        if node in fused or STEP in node.meta:
            continue
        site = _site(node, fused)
        if site is not None:
            site = _in_company(site, integers)
            found[site.op.name] = site
            if site.op.weight:
                users.setdefault(site.op.weight.name, []).append(site.op.name)
    for names in users.values():
        if len(names) > 1:
            for name in names:
                found[name] = _share(found[name], tuple(n for n in names if n != name))
    return Sites(graph, found, tuple(filter(None, (*graph.meta.get(NOTES, ()), describe(graph)))))


_COMPANIONS = frozenset({"add", "mul", "concat", "softmax", "sigmoid", "leaky_relu"})
"""Elementwise ops, worth integers only where integers come to them."""


def _in_company(site: Site, integers: set[str]) -> Site:
    """Keep an elementwise op among float ops in float: quantizing around it alone is slower than the op itself.

    Measured on ONNX Runtime 1.32: nothing is gained where no convolution feeds it, and transformers lose accuracy.
    """
    op = site.op
    if op.type in ("conv", "conv_transpose", "avg_pool"):
        integers.update(op.outputs)
    elif op.type in _COMPANIONS and not op.out_of_reach:
        if any(_adds_mask(v) for v in site.node.inputs):
            return replace(
                site,
                op=replace(
                    op, out_of_reach="it works on masked scores, whose range no integer holds"
                ),
            )
        if not integers.intersection(site.roots):
            return replace(site, op=replace(op, out_of_reach="its neighbours compute in float"))
        integers.update(op.outputs)
    return site


def _adds_mask(value: ir.Value | None, depth: int = 8) -> bool:
    """True if a value is, or comes from an addition of, a mask: constants of -10,000 and below stand for minus infinity."""
    if value is None or depth == 0 or (value.dtype is not None and value.dtype not in _FLOATS):
        return False
    held = value.const_value if is_constant(value) else None
    if held is not None:
        return (
            held.size == 1 and held.dtype in _FLOATS and float(held.numpy().reshape(-1)[0]) <= -1e4
        )
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _MASKING:
        return False
    return any(_adds_mask(v, depth - 1) for v in node.inputs)


_MASKING = frozenset({"Where", "Mul", "Expand", "Unsqueeze", "Reshape", "Slice", "Cast", "Sub", "Add", "Concat", "Transpose", "Trilu", "Max", "Squeeze",
                      "ConstantOfShape", "ScatterND", "Softmax"})  # fmt: skip


def _share(site: Site, others: tuple[str, ...]) -> Site:
    assert site.op.weight is not None
    return replace(site, op=replace(site.op, weight=replace(site.op.weight, shared_with=others)))


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in _FLOATS


def root(value: ir.Value) -> ir.Value:
    """Return the value that carriers brought here."""
    while True:
        node = value.producer()
        if node is None or not carries(node):
            return value
        first = node.inputs[0]
        assert first is not None
        value = first


def carries(node: ir.Node) -> bool:
    """True if a node moves values of its first input and computes nothing."""
    return (
        node.domain == ""
        and node.op_type in CARRIERS
        and bool(node.inputs)
        and node.inputs[0] is not None
        and not is_constant(node.inputs[0])
        and node.inputs[0].dtype in (None, *_FLOATS)
        and not any(o.uses() or o.is_graph_output() for o in node.outputs[1:])
        and (node.op_type != "Resize" or _repeats(node))
    )


def _repeats(resize: ir.Node) -> bool:
    """True if every value of a Resize is one of its input's; cropping fills in values of its own."""
    given = {
        name: resize.attributes[name].as_string()
        for name in ("mode", "coordinate_transformation_mode")
        if name in resize.attributes
    }
    return (
        given.get("mode", "nearest") == "nearest"
        and given.get("coordinate_transformation_mode") != "tf_crop_and_resize"
    )


def _only_use(value: ir.Value, op_type: str) -> ir.Node | None:
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    user = uses[0][0]
    return (
        user
        if user.op_type == op_type and user.domain == "" and user.graph is value.graph
        else None
    )


def _fuse_activation(last: ir.Node, fused: set[ir.Node]) -> tuple[ir.Node, str]:
    for op_type in ("Relu", "Clip"):
        node = _only_use(last.outputs[0], op_type)
        if node is not None and all(v is None or is_constant(v) for v in node.inputs[1:]):
            fused.add(node)
            return node, op_type.lower()
    return last, ""


def _site(node: ir.Node, fused: set[ir.Node]) -> Site | None:
    if node.domain not in ("", "ai.onnx") or not node.outputs:
        return None
    kind = node.op_type
    if kind in ("Conv", "ConvTranspose"):
        return _convolution(node, fused)
    if kind in ("MatMul", "Gemm"):
        return _product(node, fused)
    if kind == "Gather":
        return _embedding(node)
    if kind == "Einsum":
        return _einsum(node)
    if carries(node):
        if not _is_float(node.inputs[0]):
            return None
        return _make(
            node, _MOVING.get(kind, "reshape"), node, (0,), why="it carries the codes of its input"
        )
    if kind not in _PLAIN or all(v is None or is_constant(v) for v in node.inputs):
        return None
    if node.outputs[0].dtype is not None and not _is_float(node.outputs[0]):
        return None
    acts = tuple(i for i, v in enumerate(node.inputs) if v is not None and not is_constant(v))
    if kind in ("LSTM", "GRU", "RNN"):
        return _recurrent(node, acts)
    if in_pairs(node):
        return _make(node, _PLAIN[kind], node, acts, why=f"{ALREADY} (QDQ)")
    why, last, activation = "", node, ""
    if kind in ("Add", "Mul"):
        if not _is_float(node.outputs[0]):
            return None
        why = "" if len(acts) == 2 else "one side is a constant"
        last, activation = _fuse_activation(node, fused)
    return _make(node, _PLAIN[kind], last, acts, activation=activation, why=why)


def _recurrent(node: ir.Node, acts: tuple[int, ...]) -> Site:
    if not all(is_constant(v) for v in node.inputs[1:3]):
        stored = in_pairs(node, (1, 2))
        return _make(
            node,
            _PLAIN[node.op_type],
            node,
            acts,
            why=f"{ALREADY} (QDQ)" if stored else "its weights are computed at run time",
        )
    why = ""
    if (
        node.op_type == "LSTM"
        and "layout" in node.attributes
        and node.attributes["layout"].as_int() != 0
    ):
        why = "the integer kernel takes steps first (layout 0)"
    # W and R: (directions, gates * hidden, features). Each row of a gate is an output channel.
    return _make(node, _PLAIN[node.op_type], node, acts, 1, why=why, channel_axis=1, further=(2,))


def _convolution(node: ir.Node, fused: set[ir.Node]) -> Site:
    kind = "conv_transpose" if node.op_type == "ConvTranspose" else "conv"
    if not is_constant(node.inputs[1]):
        stored = in_pairs(node, (1,))
        return _make(
            node,
            kind,
            node,
            (0,),
            why=f"{ALREADY} (QDQ)" if stored else "its weight is computed at run time",
        )
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    why = "its bias is not a constant" if bias is not None and not is_constant(bias) else ""
    last, activation = _fuse_activation(node, fused)
    transposed = node.op_type == "ConvTranspose"
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    extra: dict[str, Attribute] = {"groups": group}
    for name in ("strides", "pads", "dilations"):
        if name in node.attributes:
            extra[name] = tuple(node.attributes[name].as_ints())
    return _make(node, kind, last, (0,), 1, bias, activation, why, 1 if transposed else 0, extra)


def _product(node: ir.Node, fused: set[ir.Node]) -> Site | None:
    left, right = node.inputs[0], node.inputs[1]
    if (
        left is None
        or right is None
        or (node.outputs[0].dtype is not None and not _is_float(node.outputs[0]))
    ):
        return None
    if not is_constant(right) and in_pairs(node, (0, 1)):
        return _make(node, "matmul", node, (0, 1), why=f"{ALREADY} (QDQ)")
    if is_constant(left):
        why = "its left side is a stack of constant matrices, or the right side's rank is unknown"
        return (
            None
            if is_constant(right)
            else _make(node, "matmul", node, (1,), _ranked(left, 0), why=why)
        )
    if not is_constant(right):
        why = "a Gemm of two activations" if node.op_type == "Gemm" else ""
        return _make(node, "matmul", node, (0, 1), why=why)
    if right.shape is None or len(right.shape) < 2:
        return _make(node, "matmul", node, (0,), why="its constant side is not a matrix")
    if len(right.shape) > 2:
        return _make(node, "batched_linear", node, (0,), 1, channel_axis=len(right.shape) - 1)
    if node.op_type == "Gemm":
        return _gemm(node, fused)
    last, bias = node, None
    add = _only_use(node.outputs[0], "Add")
    if add is not None:
        other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        columns = right.shape[1]
        if (
            is_constant(other)
            and other is not None
            and other.shape is not None
            and other.shape.dims in _vectors(columns, left)
        ):
            last, bias = add, other
            fused.add(add)
    last, activation = _fuse_activation(last, fused)
    return _make(node, "linear", last, (0,), 1, bias, activation, "", 1, {})


def _vectors(columns: object, left: ir.Value) -> tuple[tuple[object, ...], ...]:
    """The shapes of a bias of one number per column; scikit-learn's exporter writes a row, which must not add an axis."""
    return (
        ((columns,), (1, columns))
        if left.shape is not None and len(left.shape) >= 2
        else ((columns,),)
    )


def _gemm(node: ir.Node, fused: set[ir.Node]) -> Site:
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    odd = [k for k, v in plain.items() if k in node.attributes and node.attributes[k].value != v]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    weight = node.inputs[1]
    assert weight is not None and weight.shape is not None
    columns = weight.shape[0] if transposed else weight.shape[1]
    why = f"its {odd[0]} is not the default" if odd else ""
    if bias is not None and not (
        is_constant(bias)
        and bias.shape is not None
        and bias.shape.dims in ((columns,), (1, columns))
    ):
        why = "its bias is not a constant vector"
    last, activation = _fuse_activation(node, fused)
    return _make(node, "linear", last, (0,), 1, bias, activation, why, 0 if transposed else 1, {})


def _embedding(node: ir.Node) -> Site | None:
    table, indices = node.inputs[0], node.inputs[1]
    if in_pairs(node, (0,)):
        return _make(node, "embedding", node, (), why=f"{ALREADY} (QDQ)")
    if not is_constant(table) or is_constant(indices) or table is None or not _is_float(table):
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if table.shape is None or len(table.shape) < 2:
        return None
    if axis != 0 or len(table.shape) != 2:
        return _make(
            node,
            "embedding",
            node,
            (),
            0,
            why="how many axes its indices have is unknown",
            channel_axis=axis,
        )
    return _make(node, "embedding", node, (), 0, None, "", "", 0, {})


def _einsum(node: ir.Node) -> Site | None:
    """An Einsum that is no product of an activation and a matrix; those are MatMul by now."""
    constants = [i for i, v in enumerate(node.inputs) if is_constant(v) and _is_float(v)]
    acts = tuple(i for i in range(len(node.inputs)) if i not in constants)
    if not acts:
        return None
    weight = next((i for i in constants if _ranked(node.inputs[i], i) is not None), None)
    return _make(
        node,
        "einsum",
        node,
        acts,
        weight,
        why="its equation is no product of an activation and a constant matrix",
    )


def _ranked(value: ir.Value | None, index: int) -> int | None:
    """Return the index of a constant that counts as a weight: one of two or more dimensions."""
    return (
        index
        if value is not None and value.const_value is not None and len(value.const_value.shape) >= 2
        else None
    )


def _make(
    node: ir.Node, kind: str, last: ir.Node, acts: tuple[int, ...], weight: int | None = None, bias: ir.Value | None = None,
    activation: str = "", why: str = "", channel_axis: int = 0, extra: Mapping[str, Attribute] | None = None, further: tuple[int, ...] = (),
) -> Site:  # fmt: skip
    if not why and any(
        v is not None and v.dtype == ir.DataType.DOUBLE for v in (*node.inputs, *node.outputs)
    ):
        why = "it computes in double precision, which no quantized kernel takes"
    described = _weight(node.inputs[weight], channel_axis) if weight is not None else None
    values = [node.inputs[i] for i in acts]
    attributes: dict[str, Attribute] = {"onnx": node.op_type, **(extra or {})}
    if activation:
        attributes["activation"] = activation
    op = Op(
        name=node.name or "", type=kind, inputs=tuple(v.name or "" for v in values if v is not None), outputs=(last.outputs[0].name or "",),
        weight=described, bias=bias.name if bias is not None else None, macs=_macs(node, kind, described), attributes=attributes, out_of_reach=why,
        further=tuple(_weight(node.inputs[i], channel_axis) for i in further),
    )  # fmt: skip
    return Site(
        op,
        node,
        last,
        acts,
        tuple(root(v).name or "" for v in values if v is not None),
        weight,
        bias.name if bias is not None else None,
        activation,
    )


def _weight(held: ir.Value | None, channel_axis: int) -> Weight:
    assert held is not None and held.const_value is not None
    dtype = {"float": "float32", "double": "float64"}.get(
        name := held.const_value.dtype.name.lower(), name
    )
    made_of = tuple(source.name for source in sources(held) or ())
    return Weight(
        held.name or "", tuple(held.const_value.shape.numpy()), dtype, channel_axis, made_of=made_of
    )


def _known(value: ir.Value, start: int) -> list[int] | None:
    if value.shape is None:
        return None
    dims = list(value.shape)[start:]
    return (
        [d for d in dims if isinstance(d, int)] if all(isinstance(d, int) for d in dims) else None
    )


def _macs(node: ir.Node, kind: str, weight: Weight | None) -> int | None:
    """Multiply-accumulates for one sample (the first axis left out); None where a shape is unknown."""
    out = _known(node.outputs[0], 1)
    if weight is None or out is None or kind == "embedding":
        return None
    if kind == "conv":
        return math.prod(out) * math.prod(weight.shape[1:])
    if kind == "conv_transpose":
        inner = _known(node.inputs[0], 2) if node.inputs[0] is not None else None
        return None if inner is None else math.prod(inner) * weight.size
    if kind == "linear":
        return math.prod(out) * (weight.size // weight.shape[weight.channel_axis])
    return None


def _input_info(value: ir.Value) -> InputInfo:
    shape = (
        None
        if value.shape is None
        else tuple(d if isinstance(d, int) else None for d in value.shape)
    )
    dtype = value.dtype.name.lower() if value.dtype is not None else "float"
    return InputInfo(
        value.name or "", shape, {"float": "float32", "double": "float64"}.get(dtype, dtype)
    )
