"""From what was recognized of a node to a site: its weight, its cost, its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnx_ir import DataType, Node, Value

from octavo.adapters.onnx.prepare.already_quantized import ALREADY
from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.adapters.onnx.prepare.provenance import dtype_name, sources
from octavo.core.authoring.sites import macs
from octavo.core.values.graph import Attribute, Op, Weight

from .carriers import root
from .site import Site

IN_PAIRS = f"{ALREADY} (QDQ)"
"""Why an op between DequantizeLinear and QuantizeLinear is left as it is."""


@dataclass(frozen=True)
class Draft:
    """What was recognized of an operation.

    Attributes:
        node: The main node.
        kind: The op type, in the neutral vocabulary.
        inputs: Indices of the main node's activation inputs.
        last: The last node that is fused; None where there is none beside the main node.
        weight: Index of the weight input.
        bias: The bias, wherever it is added.
        activation: The fused activation.
        why: Why no scheme can be chosen for it; empty where one can.
        channel_axis: Axis of the weight's output channels.
        extra: Attributes beside the ONNX operator's name.
        further: Indices of weight inputs beside the first.
    """

    node: Node
    kind: str
    inputs: tuple[int, ...]
    last: Node | None = None
    weight: int | None = None
    bias: Value | None = None
    activation: str = ""
    why: str = ""
    channel_axis: int = 0
    extra: Mapping[str, Attribute] = field(default_factory=dict)
    further: tuple[int, ...] = ()

    def site(self) -> Site:
        """Describe the operation as the core sees it, beside its nodes."""
        node = self.node
        if self.last is not None:
            last = self.last
        else:
            last = node
        given = [node.inputs[index] for index in self.inputs]
        read = [value for value in given if value is not None]
        weight = None
        if self.weight is not None:
            weight = _weight(node.inputs[self.weight], self.channel_axis)
        bias = None
        if self.bias is not None:
            bias = self.bias.name
        attributes: dict[str, Attribute] = {"onnx": node.op_type, **self.extra}
        if self.activation:
            attributes["activation"] = self.activation
        op = Op(
            name=node.name or "",
            type=self.kind,
            inputs=tuple(map(name_of, read)),
            outputs=(name_of(last.outputs[0]),),
            weight=weight,
            bias=bias,
            macs=self._macs(weight),
            attributes=attributes,
            out_of_reach=self._refusal(),
            further=tuple(
                _weight(node.inputs[i], self.channel_axis) for i in self.further
            ),
        )
        roots = tuple(name_of(root(value)) for value in read)
        return Site(
            op, node, last, self.inputs, roots, self.weight, bias, self.activation
        )

    def _macs(self, weight: Weight | None) -> int | None:
        if weight is None:
            return None
        read, written = self.node.inputs[0], self.node.outputs[0]
        return macs(self.kind, weight, _shape_of(read), _shape_of(written))

    def _refusal(self) -> str:
        if self.why:
            return self.why
        for value in (*self.node.inputs, *self.node.outputs):
            if value is not None and value.dtype == DataType.DOUBLE:
                return (
                    "it computes in double precision, which no quantized kernel takes"
                )
        return ""


def _weight(held: Value | None, channel_axis: int) -> Weight:
    assert held is not None and held.const_value is not None
    tensor = held.const_value
    shape = tuple(tensor.shape.numpy())
    made_of = tuple(source.name for source in sources(held) or ())
    dtype = dtype_name(tensor.dtype)
    return Weight(name_of(held), shape, dtype, channel_axis, made_of=made_of)


def _shape_of(value: Value | None) -> tuple[int | None, ...] | None:
    """Return a value's lengths, None for those that are not known; None for an unknown rank."""
    if value is None or value.shape is None:
        return None
    return tuple(n if isinstance(n, int) else None for n in value.shape)
