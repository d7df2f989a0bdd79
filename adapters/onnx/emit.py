"""Carrying a recipe out: quantized operations take the place of float ones in a clone of the prepared graph.

Static schemes are written as QuantizeLinear/DequantizeLinear pairs in the places where ONNX Runtime fuses them into
integer kernels, so that codes flow from operation to operation: through residual adds, pooling and reshapes. A matrix
product whose result stays float, and every dynamic one, is written as MatMulIntegerToFloat, which takes the bias along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from octavo.core.adapter import OpParameters
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import QuantParams, integer_range
from octavo.core.numerics.tensor import QuantizedTensor

from .blockwise import MS, gather_blocks, matmul_nbits
from .folding import constant, drop_unused_initializers
from .packing import bias_tensors, dtype_of, tensor, weight_tensors
from .sites import Site, Sites, carries

_Key = tuple[float, int, str]


def same(a: QuantParams, b: QuantParams) -> bool:
    """True if two per-tensor parameters mean the same codes."""
    return _key(a) == _key(b)


def _key(p: QuantParams) -> _Key:
    return float(np.asarray(p.scale)), int(np.asarray(p.zero_point)), p.spec.dtype


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantized activation: its codes, scale and zero point, and the float value they stand for."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    dequantized: ir.Value


@dataclass(frozen=True, slots=True)
class Emitted:
    """What was written for one op: the main node's name and the value that holds its result (codes, if it has any)."""

    node: str
    result: str


class Emitter:
    """One clone of the prepared model, edited in place.

    Args:
        model: The prepared model; not changed. Every tensor is shared with it.
        sites: Its operations.
        parameters: What the core decided, by op name.
    """

    def __init__(self, model: ir.Model, sites: Sites, parameters: Mapping[str, OpParameters]) -> None:
        self.model = model.clone()
        self.graph = self.model.graph
        self.sites = sites
        self.parameters = parameters
        self.nodes: dict[str, ir.Node] = {n.name or "": n for n in self.graph}
        self.values: dict[str, ir.Value] = {v.name or "": v for n in self.graph for v in n.outputs}
        self.values |= {v.name or "": v for v in self.graph.inputs} | dict(self.graph.initializers)
        self._flowing: dict[str, Codes] = {}
        self._at_edge: dict[tuple[str, _Key], Codes] = {}
        self._dynamic: dict[str, Codes] = {}
        self._scalars: dict[tuple[str, ir.DataType, float | int], ir.Value] = {}
        self._weights: dict[tuple[int, str], ir.Value] = {}
        self.emitted: dict[str, Emitted] = {}

    def run(self) -> ir.Model:
        """Emit every op and return the model."""
        self._flow()
        for name, params in self.parameters.items():
            _EMITTERS[params.scheme.mode](self, self.sites.sites[name], params)
        for codes in (*self._at_edge.values(), *self._flowing.values()):
            node = codes.dequantized.producer()
            if node is not None and not codes.dequantized.uses() and not codes.dequantized.is_graph_output():
                self.graph.remove(node, safe=True)  # the runtime would run it although nobody reads it
        self._keep_norms_apart()
        drop_unused_initializers(self.graph)
        if any(node.domain == MS for node in self.graph):
            self.graph.opset_imports.setdefault(MS, 1)
        return self.model

    def _keep_norms_apart(self) -> None:
        """Write a residual add before a layer norm as Sum, which ONNX Runtime does not fuse with the norm.

        With the biases inside the integer products, Add and LayerNormalization would become SkipLayerNormalization, whose
        CPU kernel takes 4 times as long as the two (ONNX Runtime 1.32: 3.4 ms against 0.9 ms for 4096 rows of 384).
        """
        for norm in [n for n in self.graph if n.op_type == "LayerNormalization" and n.domain == ""]:
            add = norm.inputs[0].producer() if norm.inputs[0] is not None else None
            if add is None or add.op_type != "Add" or add.domain != "" or add.outputs[0].is_graph_output():
                continue
            total = ir.node("Sum", list(add.inputs), name=add.name)
            old, new = add.outputs[0], total.outputs[0]
            new.type, new.shape = old.type, old.shape
            self.graph.insert_after(add, [total])
            old.replace_all_uses_with(new)
            new.name, old.name = old.name, f"{old.name}_replaced"
            self.graph.remove(add, safe=True)

    # Where codes flow: values whose producer and whose consumers all speak integers.

    @cached_property
    def _edges(self) -> Mapping[str, Sequence[QuantParams]]:
        """Per root value, the parameters its static consumers ask for."""
        found: dict[str, list[QuantParams]] = {}
        for name, params in self.parameters.items():
            if params.scheme.mode == "static":
                for value, p in zip(self.sites.sites[name].roots, params.inputs, strict=True):
                    if p is not None:
                        found.setdefault(value, []).append(p)
        return found

    def _flow(self) -> None:
        for name, params in self.parameters.items():
            if params.scheme.mode != "static":
                continue
            site = self.sites.sites[name]
            value = site.op.outputs[0]
            p = params.outputs[0] if params.outputs and params.scheme.output is not None else None
            if p is None and self._all_static(value):  # a result that may stay float stays float where anybody reads it so
                p = self._edges[value][0]
            if p is not None:
                self._let_flow(self.values[value], p)
                if site.activation == "clip":
                    self._drop_clip(self.nodes[site.last.name or ""], p)

    def _drop_clip(self, clip: ir.Node, params: QuantParams) -> None:
        """Leave a Clip out whose limits the codes' own range keeps, to within half a step."""
        scale, zero, _ = _key(params)
        qmin, qmax = integer_range(params.spec)
        limits = [constant(v) for v in clip.inputs[1:]] + [None, None]
        low, high = (float(a.reshape(-1)[0]) if a is not None else None for a in limits[:2])
        inside = (low is None or (qmin - zero) * scale >= low - scale / 2) and (high is None or (qmax - zero) * scale <= high + scale / 2)
        value = clip.inputs[0]
        if inside and value is not None:
            clip.outputs[0].replace_all_uses_with(value)
            self.graph.remove(clip, safe=True)

    def _all_static(self, name: str) -> bool:
        """True if everything that reads a value, through carriers too, is a static op that wants the same codes."""
        wanted = self._edges.get(name, ())
        value = self.values[name]
        if not wanted or value.is_graph_output() or not all(same(wanted[0], p) for p in wanted):
            return False
        return self._leaves(value) <= len(wanted)

    def _leaves(self, value: ir.Value) -> int:
        total = 0
        for user, index in value.uses():
            carried = index == 0 and carries(user)
            total += self._leaves(user.outputs[0]) if carried else 1
        return total + (1000 if value.is_graph_output() else 0)

    def _let_flow(self, value: ir.Value, params: QuantParams) -> None:
        """Quantize a value for all who read it, and the values that carriers make of it."""
        name = value.name or ""
        readers = [user for user, index in value.uses() if index == 0 and carries(user)]
        codes = self._pair(value, params)
        keep = {codes.codes.producer()}
        value.replace_all_uses_with(codes.dequantized, replace_graph_outputs=True)
        quantizer = next(n for n in keep if n is not None)
        quantizer.replace_input_with(0, value)
        if codes.dequantized.is_graph_output():
            value.name, codes.dequantized.name = f"{name}_float", name
        self._flowing[name] = codes
        for reader in readers:
            if self._leads_to_static(reader.outputs[0]):
                self._let_flow(reader.outputs[0], params)

    def _leads_to_static(self, value: ir.Value) -> bool:
        original = value.name or ""
        for site in self.sites.sites.values():
            params = self.parameters.get(site.op.name)
            if params is not None and params.scheme.mode == "static":
                for index in site.inputs:
                    step: ir.Value | None = site.node.inputs[index]
                    while step is not None:
                        if step.name == original:
                            return True
                        producer = step.producer()
                        step = producer.inputs[0] if producer is not None and carries(producer) else None
        return False

    # Pieces

    def scalar(self, prefix: str, number: float | int, dtype: ir.DataType) -> ir.Value:
        """Return a scalar initializer, shared by all who need the same number."""
        key = (prefix, dtype, number)
        if key not in self._scalars:
            self._scalars[key] = self.initializer(f"{prefix}_{len(self._scalars)}", tensor(np.asarray(number), dtype, prefix))
        return self._scalars[key]

    def current(self, name: str) -> ir.Value:
        """Return what now stands for a float value: the dequantized one where codes flow."""
        return self._flowing[name].dequantized if name in self._flowing else self.values[name]

    def initializer(self, name: str, held: ir.TensorProtocol) -> ir.Value:
        """Register a tensor under a free name."""
        unique, i = name, 1
        while unique in self.graph.initializers or unique in self.values:
            unique, i = f"{name}_{i}", i + 1
        value = ir.Value(name=unique, type=ir.TensorType(held.dtype), shape=ir.Shape(held.shape.numpy()), const_value=held)
        self.graph.register_initializer(value)
        return value

    def shared(self, name: str, held: ir.TensorProtocol) -> ir.Value:
        """Register a packed weight tensor once, however many ops use it."""
        key = (id(held), name.rsplit("_", 1)[-1])
        if key not in self._weights:
            self._weights[key] = self.initializer(name, held)
        return self._weights[key]

    def after(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Insert nodes right after a value's producer."""
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, nodes)
        else:
            self.graph.insert_before(self.graph[0], nodes)

    def _pair(self, value: ir.Value, params: QuantParams) -> Codes:
        """Insert QuantizeLinear and DequantizeLinear after a value; nobody reads them yet."""
        name, dtype = value.name or "value", dtype_of(params.spec.dtype)
        scale = self.scalar("scale", float(np.asarray(params.scale)), ir.DataType.FLOAT)
        zero = self.scalar("zero", int(np.asarray(params.zero_point)), dtype)
        # The standard ops take 16 bits from opset 21 on, ONNX Runtime's own in any.
        domain = MS if dtype.bitwidth != 8 and self.graph.opset_imports.get("", 0) < 21 else ""
        suffix = "" if f"{name}_quantized" not in self.values else f"_{len(self._at_edge) + len(self._flowing)}"
        quantize = ir.node("QuantizeLinear", [value, scale, zero], domain=domain, name=f"{name}_QuantizeLinear{suffix}")
        codes = quantize.outputs[0]
        codes.name, codes.type, codes.shape = f"{name}_quantized{suffix}", ir.TensorType(dtype), value.shape
        dequantize = ir.node("DequantizeLinear", [codes, scale, zero], domain=domain, name=f"{name}_DequantizeLinear{suffix}")
        result = dequantize.outputs[0]
        result.name, result.type, result.shape = f"{name}_dequantized{suffix}", value.type, value.shape
        self.after(value, [quantize, dequantize])
        self.values[codes.name] = codes
        return Codes(codes, scale, zero, result)

    def activation(self, site: Site, position: int, params: QuantParams | None) -> Codes:
        """Return the codes of an op's activation input: the flowing ones, or ones made for this edge.

        Raises:
            SchemeError: If the core gave no parameters.
        """
        original = site.node.inputs[site.inputs[position]]
        assert original is not None
        name = original.name or ""
        flowing = self._flowing.get(name)
        if flowing is not None and (params is None or flowing.codes.dtype == dtype_of(params.spec.dtype)):
            return flowing
        if params is None:
            raise SchemeError(f"op {site.op.name!r} is static, but its input {site.op.inputs[position]!r} has no parameters; calibrate it")
        key = (name, _key(params))
        if key not in self._at_edge:
            # codes of another type flow here (signed, unsigned): this consumer gets its own
            self._at_edge[key] = self._pair(self.values[name] if flowing is None else flowing.dequantized, params)
        return self._at_edge[key]

    def dynamic_activation(self, site: Site, position: int = 0) -> Codes:
        """Return codes whose scale is found at run time; shared by all who read the value."""
        original = site.node.inputs[site.inputs[position]]
        assert original is not None
        name = original.name or ""
        if name not in self._dynamic:
            value = self.current(name)
            node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{name}_DynamicQuantizeLinear")
            for output, tag, dtype in zip(
                node.outputs, ("quantized", "scale", "zero"), (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8), strict=True
            ):
                output.name, output.type = f"{name}_dynamic_{tag}", ir.TensorType(dtype)
            self.after(value, [node])
            self._dynamic[name] = Codes(node.outputs[0], node.outputs[1], node.outputs[2], value)
        return self._dynamic[name]

    def bias(self, site: Site, params: OpParameters) -> np.ndarray | None:
        """Return the float bias of an op, a corrected one first."""
        if params.bias is not None:
            return np.asarray(params.bias, np.float32).ravel()
        if site.bias is None:
            return None
        held = self.values[site.bias].const_value
        assert held is not None
        return held.numpy().astype(np.float32).ravel()

    def replace(self, site: Site, nodes: Sequence[ir.Node], *, until: ir.Node) -> None:
        """Put nodes in place of a site's nodes up to ``until``; the last one's output takes over."""
        nodes[-1].name = site.op.name
        main, old = self.nodes[site.op.name], self.nodes[until.name or ""]
        for i, node in enumerate(nodes[:-1]):
            node.name = f"{site.op.name}_{node.op_type}_{i}"
            node.outputs[0].name = f"{site.op.name}_{node.op_type}_{i}_output"
        result, output = nodes[-1].outputs[0], old.outputs[0]
        self.graph.insert_after(old, list(nodes))
        result.type, result.shape = output.type, output.shape
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        result.name, output.name = output.name, f"{output.name}_replaced"
        self.values[result.name or ""] = result
        for node in dict.fromkeys((old, main)):
            self.graph.remove(node, safe=True)


def _dequantized_weight(e: Emitter, site: Site, weight: QuantizedTensor) -> ir.Value:
    assert site.op.weight is not None
    codes, scale, zero, axis = weight_tensors(weight)
    name = site.op.weight.name
    inputs = [e.shared(f"{name}_quantized", codes), e.shared(f"{name}_scale", scale), e.shared(f"{name}_zero", zero)]
    node = ir.node("DequantizeLinear", inputs, {"axis": axis} if axis is not None else None, name=f"{site.op.name}_weight_DequantizeLinear")
    node.outputs[0].name, node.outputs[0].type = f"{site.op.name}_weight", ir.TensorType(ir.DataType.FLOAT)
    e.graph.insert_before(e.nodes[site.op.name], [node])
    return node.outputs[0]


def _dequantized_bias(e: Emitter, site: Site, codes: ir.TensorProtocol, scale: ir.TensorProtocol) -> ir.Value:
    inputs = [e.initializer(f"{site.op.name}_bias_quantized", codes), e.initializer(f"{site.op.name}_bias_scale", scale)]
    node = ir.node("DequantizeLinear", inputs, {"axis": 0} if scale.shape.rank() else None, name=f"{site.op.name}_bias_DequantizeLinear")
    node.outputs[0].name, node.outputs[0].type = f"{site.op.name}_bias", ir.TensorType(ir.DataType.FLOAT)
    e.graph.insert_before(e.nodes[site.op.name], [node])
    return node.outputs[0]


def _static(e: Emitter, site: Site, params: OpParameters) -> None:
    if site.op.type == "linear" and site.op.outputs[0] not in e._flowing and site.node.op_type == "MatMul":
        _integer_product(e, site, params, e.activation(site, 0, params.inputs[0]))
        return
    node = e.nodes[site.op.name]
    for position, index in enumerate(site.inputs):
        node.replace_input_with(index, e.activation(site, position, params.inputs[position]).dequantized)
    result = node
    if site.weight is not None and params.weight is not None:
        weight, bias = params.weight, e.bias(site, params)
        if bias is not None and site.node.op_type != "MatMul":
            x = params.inputs[0]
            held = e.activation(site, 0, x).scale.const_value  # the producer's, where its codes flow here
            assert held is not None
            codes, scale, weight = bias_tensors(bias, weight, float(held.numpy()))
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, _dequantized_bias(e, site, codes, scale))
        elif params.bias is not None:
            _replace_added_bias(e, site, params)
        node.replace_input_with(site.weight, _dequantized_weight(e, site, weight))
    e.emitted[site.op.name] = Emitted(result.name or "", site.op.outputs[0])


def _replace_added_bias(e: Emitter, site: Site, params: OpParameters) -> None:
    if site.bias is None:
        raise SchemeError(f"op {site.op.name!r} has no bias to correct in this form; leave bias correction out for it")
    for user, index in tuple(e.values[site.bias].uses()):
        if e.nodes[site.op.name].outputs[0] in user.inputs:
            user.replace_input_with(index, e.initializer(f"{site.bias}_corrected", tensor(params.bias, ir.DataType.FLOAT, "bias")))


def _integer_product(e: Emitter, site: Site, params: OpParameters, x: Codes) -> None:
    """y = MatMulIntegerToFloat(x, w) + bias: integer product, float result, in one kernel."""
    assert params.weight is not None and site.op.weight is not None
    transposed = site.op.weight.channel_axis == 0
    codes, scale, zero, _ = weight_tensors(params.weight, transposed=transposed)
    name = site.op.weight.name
    tag = "kn" if transposed else ""
    inputs: list[ir.Value | None] = [
        x.codes, e.shared(f"{name}{tag}_quantized", codes), x.scale, e.shared(f"{name}_scale", scale), x.zero_point, e.shared(f"{name}_zero", zero),
    ]  # fmt: skip
    bias = e.bias(site, params)
    if bias is not None:
        inputs.append(e.initializer(f"{site.op.name}_bias", tensor(bias, ir.DataType.FLOAT, "bias")))
    product = ir.node("MatMulIntegerToFloat", inputs, domain=MS)
    e.replace(site, [product], until=site.before_activation)
    e.emitted[site.op.name] = Emitted(site.op.name, site.op.outputs[0])


def _weight_only(e: Emitter, site: Site, params: OpParameters) -> None:
    node = gather_blocks(e, site, params) if site.op.type == "embedding" else matmul_nbits(e, site, params)
    e.replace(site, [node], until=site.before_activation)
    e.emitted[site.op.name] = Emitted(site.op.name, site.op.outputs[0])


def _dynamic(e: Emitter, site: Site, params: OpParameters) -> None:
    if params.weight is not None and params.weight.params.spec.group_size:
        _weight_only(e, site, params)
        return
    x = e.dynamic_activation(site)
    if site.op.type == "linear":
        _integer_product(e, site, params, x)
        return
    assert params.weight is not None and site.op.weight is not None
    codes, scale, zero, _ = weight_tensors(params.weight)
    name, node = site.op.weight.name, e.nodes[site.op.name]
    rank = len(site.op.weight.shape)
    attributes = dict(node.attributes)
    inputs: list[ir.Value | None] = [x.codes, e.shared(f"{name}_quantized", codes), x.zero_point]
    if not params.weight.params.spec.symmetric:  # the kernel takes one zero point, not one a channel; 0 is left out
        inputs.append(e.shared(f"{name}_zero", zero))
    product = ir.node("ConvInteger", inputs, attributes)
    cast = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT.value})
    column = np.asarray(scale.numpy())
    shaped = e.initializer(
        f"{name}_scale", tensor(column.reshape(-1, *(1,) * (rank - 2)) if column.ndim else column, ir.DataType.FLOAT, "scale")
    )
    factor = ir.node("Mul", [x.scale, shaped])
    nodes = [product, cast, factor, ir.node("Mul", [cast.outputs[0], factor.outputs[0]])]
    bias = e.bias(site, params)
    if bias is not None:
        held = e.initializer(f"{site.op.name}_bias", tensor(bias.reshape(-1, *(1,) * (rank - 2)), ir.DataType.FLOAT, "bias"))
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], held]))
    e.replace(site, nodes, until=site.node)
    e.emitted[site.op.name] = Emitted(f"{site.op.name}_ConvInteger_0", f"{site.op.name}_ConvInteger_0_output")


_EMITTERS: Mapping[str, Callable[[Emitter, Site, OpParameters], None]] = {
    "static": _static,
    "dynamic": _dynamic,
    "weight_only": _weight_only,
}
