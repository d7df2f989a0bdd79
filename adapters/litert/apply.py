"""A recipe carried out: each op in its precision, with QUANTIZE and DEQUANTIZE where these meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from ai_edge_litert import schema_py_generated as fb

from octavo.plugin import (
    OpParameters,
    QuantizedTensor,
    QuantParams,
    SchemeError,
    integer_bias,
    pack,
)

from .describe import Described
from .graph import TYPES, Writer, buffer_of, quantization
from .site import CARRIERS, Site

FIXED: Mapping[tuple[str, str], tuple[float, int]] = {
    ("SOFTMAX", "int8"): (2.0**-8, -128),
    ("LOGISTIC", "int8"): (2.0**-8, -128),
    ("TANH", "int8"): (2.0**-7, 0),
    ("SOFTMAX", "int16"): (2.0**-15, 0),
    ("LOGISTIC", "int16"): (2.0**-15, 0),
    ("TANH", "int16"): (2.0**-15, 0),
}
"""(operator, type) -> scale and zero point that its result must have.

Source: LiteRT 8-bit quantization specification, int8 quantized operator specifications; the int16
ones are what the kernels' ``Prepare`` checks.
"""

KEEPS_SCALE = ("AVERAGE_POOL_2D", "CONCATENATION")
"""Operators whose inputs and result must have one scale (the same specification)."""

_VERSIONS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "MEAN"), (2, 3)),
    **dict.fromkeys(("SOFTMAX", "LOGISTIC", "TANH", "BATCH_MATMUL"), (2, 3)),
    **dict.fromkeys(("LEAKY_RELU", "GELU", "MAX_POOL_2D", "TRANSPOSE"), (2, 2)),
    **dict.fromkeys(("PAD", "SLICE", "STRIDED_SLICE", "RELU", "RELU6"), (2, 2)),
    "CONV_2D": (3, 4),
    "DEPTHWISE_CONV_2D": (3, 5),
    "TRANSPOSE_CONV": (2, 3),
    "FULLY_CONNECTED": (4, 7),
    "SUB": (3, 5),
    "MUL": (2, 4),
}
"""Operator -> the version that takes int8 activations, and the one for int16; else 1.

The interpreter takes any that it knows; converters and other runtimes ask.
"""


@dataclass(frozen=True)
class Codes:
    """A quantized activation: a new tensor, and what its codes mean."""

    tensor: int
    dtype: str
    scale: float
    zero_point: int

    @property
    def meaning(self) -> tuple[str, float, int]:
        """Equal where two tensors' codes mean the same numbers."""
        return self.dtype, self.scale, self.zero_point


class Emission(Writer):
    """Writes a described graph in the precisions of a recipe.

    Args:
        described: The float model.
        parameters: Op name -> what the core decided.

    Attributes:
        carried: Names of the ops that move codes and have no scheme of their own.
    """

    def __init__(
        self, described: Described, parameters: Mapping[str, OpParameters]
    ) -> None:
        super().__init__(described.graph)
        self._parameters = parameters
        self._sites = {id(site.node): site for site in described.sites.values()}
        # The tensors that hold a value: float32 where there is one, and each form of codes.
        self._float: dict[int, int] = {}
        self._forms: dict[int, list[Codes]] = {}
        self._weights: dict[QuantizedTensor, int] = {}
        self.carried: set[str] = set()

    def model(self, values: Sequence[int] | None = None) -> bytes:
        """Return the whole model.

        Args:
            values: Old tensors that it puts out; None for its own outputs.
        """
        for node in self.graph.nodes:
            self._emit(node)
        wanted = self.graph.outputs if values is None else values
        return self.finish([self._in_float(index) for index in wanted])

    def _emit(self, node: Any) -> None:
        site = self._sites.get(id(node))
        given = self._parameters.get(site.op.name) if site is not None else None
        if site is not None and given is not None and not given.scheme.is_float:
            _WRITERS[given.scheme.mode](self, site, given)
        elif site is not None and site.code in CARRIERS and site.read[0] in self._forms:
            self._carry(site)
        else:
            self._plain(node)

    def _plain(self, node: Any) -> None:
        """Write an operator as it was, over values in float."""
        inputs = [self._in_float(int(index)) for index in node.inputs]
        outputs = [self.take(int(index)) for index in node.outputs]
        made = self.node(self.graph.code(node), inputs, outputs, node)
        if node.intermediates is not None and len(node.intermediates):
            made.intermediates = [self.take(int(index)) for index in node.intermediates]

    def _carry(self, site: Site) -> None:
        """Let an operator that moves values move codes."""
        x = self._forms[site.read[0]][0]
        inputs = self._others(site)
        inputs[site.positions[0]] = x.tensor
        y = self._result(site, x.meaning)
        self.node(site.code, inputs, [y.tensor], site.node, _version(site.code, y))
        self.carried.add(site.op.name)

    # Activations

    def _in_float(self, old: int) -> int:
        """Return the new tensor of a value in float."""
        codes = self._forms.get(old)
        if codes and old not in self.taken:
            x = codes[0]
            self.node("DEQUANTIZE", [x.tensor], [self.take(old)], version=2)
        return self.take(old)

    def _in_codes(self, old: int, params: QuantParams | None, site: Site) -> Codes:
        """Return a value's codes: those of whoever made it, or ones of this scale."""
        if params is None:
            raise SchemeError(
                f"op {site.op.name!r} is static, but an input has no parameters; calibrate it"
            )
        meaning = _meaning(params)
        known = self._forms.get(old, [])
        if site.code in KEEPS_SCALE[1:]:
            known = [codes for codes in known if codes.meaning == meaning]
        for codes in known:
            if codes.dtype == meaning[0]:
                return codes
        source = self._in_float(old)
        if site.code in KEEPS_SCALE and self._forms.get(old):
            source = self._forms[old][0].tensor
        made = self._coded(old, meaning)
        self.node("QUANTIZE", [source], [made.tensor])
        return made

    def _coded(self, old: int, meaning: tuple[str, float, int]) -> Codes:
        """Return a new form of a value in codes; nothing writes it yet."""
        dtype, scale, zero = meaning
        known = self._forms.setdefault(old, [])
        suffix = f"/{dtype}" + (f"_{len(known)}" if known else "")
        tensor = self.like(old, dtype, quantization(scale, zero), suffix)
        known.append(Codes(tensor, *meaning))
        return known[-1]

    def _result(self, site: Site, meaning: tuple[str, float, int]) -> Codes:
        return self._coded(int(site.node.outputs[0]), meaning)

    def _others(self, site: Site) -> list[int]:
        """Return a node's inputs that are no activations; the others' places are to be filled."""
        kept = set(range(len(site.node.inputs))) - set(site.positions)
        kept -= {site.weight, site.bias}
        places = enumerate(site.node.inputs)
        return [self._in_float(int(old)) if at in kept else -1 for at, old in places]

    # Ops

    def _static(self, site: Site, given: OpParameters) -> None:
        read = zip(site.read, given.inputs, strict=True)
        codes = [self._in_codes(old, params, site) for old, params in read]
        inputs = self._others(site)
        for at, x in zip(site.positions, codes, strict=True):
            inputs[at] = x.tensor
        if given.weight is not None:
            self._put_weight(site, given, inputs, codes[0])
        y = self._result(site, _written(site, given, codes))
        self.node(site.code, inputs, [y.tensor], site.node, _version(site.code, y))

    def _put_weight(
        self, site: Site, given: OpParameters, inputs: list[int], x: Codes
    ) -> None:
        """Put a static op's weight, and its bias at the scale of its products, in their places."""
        weight = given.weight
        bias = self._bias(site, given)
        assert weight is not None and site.weight is not None
        if bias is not None:
            whole, scale, weight = integer_bias(bias, weight, x.scale)
            # 16-bit activations are summed in 64 bits.
            wide = "int64" if x.dtype == "int16" else "int32"
            name = f"{site.op.name}/bias"
            buffer = buffer_of(whole.astype(wide))
            zeros = np.zeros_like(scale, np.int64)
            quant = quantization(scale, zeros)
            held = self.constant(name, whole.shape, TYPES[wide], buffer, quant)
            _put(inputs, site.bias, held)
        inputs[site.weight] = self._weight(site, weight)

    def _bias(self, site: Site, given: OpParameters) -> np.ndarray | None:
        if given.bias is not None:
            return np.asarray(given.bias, np.float32)
        if site.op.bias is None or site.bias is None:
            return None
        return self.graph.constant(int(site.node.inputs[site.bias]))

    def _weight(self, site: Site, weight: QuantizedTensor) -> int:
        """Return a weight's codes as a constant; ops that share it share that too."""
        if weight not in self._weights:
            params = weight.params
            scale = np.asarray(params.scale)
            zero = np.asarray(params.zero_point)
            axis = 0 if params.axis is None else site.axes[params.axis]
            is_whole = params.spec.dtype == "float16"
            quant = None if is_whole else quantization(scale, zero, axis)
            assert site.weight is not None
            old = int(site.node.inputs[site.weight])
            shape = self.graph.tensors[old].shape
            type_ = getattr(fb.TensorType, params.spec.dtype.upper())
            name = f"{self.graph.name(old)}/{params.spec.dtype}"
            buffer = _packed(weight, site)
            self._weights[weight] = self.constant(name, shape, type_, buffer, quant)
        return self._weights[weight]

    def _hybrid(self, site: Site, given: OpParameters) -> None:
        """Write an op over float activations and a weight in codes: the kernel finds the scales of
        its input's rows by itself."""
        inputs = self._float_beside(site, given)
        assert given.weight is not None and site.weight is not None
        inputs[site.weight] = self._weight(site, given.weight)
        outputs = [self.take(int(site.node.outputs[0]))]
        self.node(site.code, inputs, outputs, site.node, 3)

    def _stored(self, site: Site, given: OpParameters) -> None:
        """Write a float op whose weight is stored in codes and decoded before it."""
        inputs = self._float_beside(site, given)
        assert given.weight is not None and site.weight is not None
        held = self._weight(site, given.weight)
        old = int(site.node.inputs[site.weight])
        decoded = self.like(old, "float32", None, "/decoded")
        self.node("DEQUANTIZE", [held], [decoded], version=5)
        inputs[site.weight] = decoded
        outputs = [self.take(int(site.node.outputs[0]))]
        self.node(site.code, inputs, outputs, site.node)

    def _float_beside(self, site: Site, given: OpParameters) -> list[int]:
        """Return an op's inputs in float, its weight's place to be filled."""
        inputs = [self._in_float(int(old)) for old in self._without_weight(site)]
        if given.bias is not None:
            whole = np.asarray(given.bias, np.float32)
            buffer = buffer_of(whole)
            name = f"{site.op.name}/bias"
            held = self.constant(name, whole.shape, TYPES["float32"], buffer)
            _put(inputs, site.bias, held)
        return inputs

    def _without_weight(self, site: Site) -> list[int]:
        places = enumerate(site.node.inputs)
        return [-1 if at == site.weight else int(old) for at, old in places]


_WRITERS = {
    "static": Emission._static,
    "dynamic": Emission._hybrid,
    "weight_only": Emission._stored,
    "cast": Emission._stored,
}


def _written(
    site: Site, given: OpParameters, read: Sequence[Codes]
) -> tuple[str, float, int]:
    """Return what the codes of a static op's result mean."""
    dtype = read[0].dtype
    if site.code in KEEPS_SCALE:
        return read[0].meaning
    fixed = FIXED.get((site.code, dtype))
    if fixed is not None:
        return (dtype, *fixed)
    params = given.outputs[0] if given.outputs else None
    if params is None:
        raise SchemeError(
            f"op {site.op.name!r} is static, but its output has no parameters; its scheme must "
            "name an output"
        )
    return _meaning(params)


def _meaning(params: QuantParams) -> tuple[str, float, int]:
    scale, zero = np.asarray(params.scale), np.asarray(params.zero_point)
    return params.spec.dtype, float(scale), int(zero)


def _version(code: str, y: Codes) -> int:
    return _VERSIONS.get(code, (1, 1))[y.dtype == "int16"]


def _put(inputs: list[int], at: int | None, tensor: int) -> None:
    """Fill a place among a node's inputs, which may lie behind the last."""
    assert at is not None
    inputs += [-1] * (at + 1 - len(inputs))
    inputs[at] = tensor


_PACKED: WeakKeyDictionary[QuantizedTensor, Any] = WeakKeyDictionary()


def _packed(weight: QuantizedTensor, site: Site) -> Any:
    """Return a weight's codes as a buffer in the file's layout, made once while it lives."""
    found = _PACKED.get(weight)
    if found is None:
        codes = np.asarray(weight.codes).transpose(np.argsort(site.axes))
        if weight.params.spec.bits < 8:
            codes = np.asarray(pack(codes.reshape(-1), weight.params.spec.bits))
        found = _PACKED[weight] = buffer_of(codes)
    return found
