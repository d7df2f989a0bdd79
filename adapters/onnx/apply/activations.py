"""Quantized activations: codes that flow, codes made for one edge, codes of a scale found later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType, Model, Node, Value

from octavo.adapters.onnx.describe.site import Site
from octavo.adapters.onnx.describe.sites import Sites
from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.adapters.onnx.prepare.scopes import owner
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import QuantParams

from .editing import Editor
from .nodes import MS, declare, declare_like, dequantize_linear, swap_names
from .packing import dtype_of

CodesKey = tuple[float, int, str]


def codes_key(p: QuantParams) -> CodesKey:
    """Return scale, zero point and type of per-tensor parameters: what their codes mean."""
    scale = np.asarray(p.scale)
    zero_point = np.asarray(p.zero_point)
    return float(scale), int(zero_point), p.spec.dtype


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantized activation: codes, scale and zero point, and the float value they stand for."""

    codes: Value
    scale: Value
    zero_point: Value
    dequantized: Value


class CodesEditor(Editor):
    """An editor that quantizes activations.

    Attributes:
        flowing: Value name -> the codes that take its place for all who read it.
        at_edge: Codes made for one consumer alone, by value name and parameters.
    """

    def __init__(
        self, model: Model, sites: Sites, parameters: Mapping[str, OpParameters]
    ) -> None:
        super().__init__(model, sites, parameters)
        self.flowing: dict[str, Codes] = {}
        self.at_edge: dict[tuple[str, CodesKey], Codes] = {}
        self._dynamic: dict[str, Codes] = {}
        self._in_bodies: dict[tuple[int, str], Value] = {}

    def flows(self, name: str) -> bool:
        """True if codes take the place of a value for all who read it."""
        return name in self.flowing

    def current(self, name: str) -> Value:
        """Return what now stands for a float value: the dequantized one where codes flow."""
        flowing = self.flowing.get(name)
        if flowing is not None:
            return flowing.dequantized
        return self.values[name]

    def let_flow(self, value: Value, params: QuantParams) -> None:
        """Quantize a value for all who read it."""
        name = value.name or ""
        codes = self._pair(value, params)
        decoded = codes.dequantized
        quantizer = codes.codes.producer()
        assert quantizer is not None
        # The quantizer itself reads the value, and must go on to do so.
        value.replace_all_uses_with(decoded, replace_graph_outputs=True)
        quantizer.replace_input_with(0, value)
        if decoded.is_graph_output():
            swap_names(decoded, value, "float")
        self.flowing[name] = codes

    def activation(
        self, site: Site, position: int, params: QuantParams | None
    ) -> Codes:
        """Return the codes of an op's activation input: the flowing ones, or ones for this edge.

        Raises:
            SchemeError: If the core gave no parameters.
        """
        name = site.input_value(position).name or ""
        flowing = self.flowing.get(name)
        if params is None:
            if flowing is not None:
                return flowing
            raise SchemeError(
                f"op {site.name!r} is static, but its input "
                f"{site.op.inputs[position]!r} has no parameters; calibrate it"
            )
        wanted = dtype_of(params.spec.dtype)
        if flowing is not None and flowing.codes.dtype == wanted:
            return flowing
        key = (name, codes_key(params))
        if key not in self.at_edge:
            # Codes of another type may flow here (signed, unsigned): this consumer gets its own.
            value = self.current(name)
            self.at_edge[key] = self._pair(value, params)
        return self.at_edge[key]

    def pair_domain(self, dtype: DataType) -> str:
        """Whose QuantizeLinear and DequantizeLinear take a type.

        The standard's take 4 and 16 bits from opset 21 on, the runtime's in any.
        """
        is_old = self.graph.opset_imports.get("", 0) < 21
        is_byte = dtype.bitwidth == 8
        if is_old and not is_byte:
            return MS
        return ""

    def _pair(self, value: Value, params: QuantParams) -> Codes:
        """Insert QuantizeLinear and DequantizeLinear after a value; nobody reads them yet."""
        name = value.name or "value"
        dtype = dtype_of(params.spec.dtype)
        domain = self.pair_domain(dtype)
        factor, offset, _ = codes_key(params)
        scale = self.scalar("scale", factor, DataType.FLOAT)
        zero = self.scalar("zero", offset, dtype)
        # A value with a pair of another type already gets a second one under another name.
        suffix = ""
        if f"{name}_quantized" in self.values:
            pairs = len(self.at_edge) + len(self.flowing)
            suffix = f"_{pairs}"
        named = f"{name}_QuantizeLinear{suffix}"
        quantize = ir.node(
            "QuantizeLinear", [value, scale, zero], domain=domain, name=named
        )
        codes = quantize.outputs[0]
        declare(codes, f"{name}_quantized{suffix}", dtype, value.shape)
        dequantize = dequantize_linear(
            [codes, scale, zero],
            name=f"{name}_DequantizeLinear{suffix}",
            result=f"{name}_dequantized{suffix}",
            domain=domain,
        )
        declare_like(dequantize.outputs[0], value)
        self.after(value, [quantize, dequantize])
        self.values[codes.name or ""] = codes
        return Codes(codes, scale, zero, dequantize.outputs[0])

    def dequantized_at(self, node: Node, codes: Codes) -> Value:
        """Return a float value of codes that is written in a node's own graph.

        ONNX Runtime fuses a DequantizeLinear with a node of the same graph alone; a node of a body
        reads one of that body.
        """
        graph = owner(node)
        decoded = codes.dequantized
        written = decoded.producer()
        if written is None or written.graph is graph:
            return decoded
        key = (id(graph), name_of(codes.codes))
        if key not in self._in_bodies:
            made = dequantize_linear(
                [codes.codes, codes.scale, codes.zero_point],
                name=f"{node.name}_{written.name}",
                result=f"{node.name}_{decoded.name}",
                domain=written.domain,
            )
            result = made.outputs[0]
            declare_like(result, decoded)
            first = graph[0]
            graph.insert_before(first, [made])
            self._in_bodies[key] = result
        return self._in_bodies[key]

    def dynamic_activation(self, site: Site) -> Codes:
        """Return the first input's codes, of a scale found at run time.

        They are shared by all who read the value.
        """
        name = site.input_value(0).name or ""
        if name not in self._dynamic:
            value = self.current(name)
            made = f"{name}_DynamicQuantizeLinear"
            node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=made)
            codes, scale, zero = node.outputs
            declare(codes, f"{name}_dynamic_quantized", DataType.UINT8)
            declare(scale, f"{name}_dynamic_scale", DataType.FLOAT)
            declare(zero, f"{name}_dynamic_zero", DataType.UINT8)
            self.after(value, [node])
            self._dynamic[name] = Codes(codes, scale, zero, value)
        return self._dynamic[name]
