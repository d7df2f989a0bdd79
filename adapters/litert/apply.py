"""A recipe carried out: each op in its precision, with QUANTIZE and DEQUANTIZE where these meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as fb

from octavo.plugin import (
    REST,
    OpParameters,
    QuantizedTensor,
    QuantParams,
    QuantSpec,
    SchemeError,
    affine_params,
    integer_bias,
    quantize,
)

from .codes import (
    Codes,
    Meaning,
    is_within_six,
    meaning_of,
    packed,
    result_of,
    version_of,
)
from .describe import Described
from .graph import TYPES, buffer_of, quantization
from .site import Site
from .writing import Writer


class Emission(Writer):
    """Writes a described graph in the precisions of a recipe.

    Args:
        described: The float model.
        parameters: Op name -> what the core decided.

    Attributes:
        carried: Names of the ops that move codes and have no scheme of their own.
        bytes: Op name -> bytes of the constants that came with it.
    """

    def __init__(
        self, described: Described, parameters: Mapping[str, OpParameters]
    ) -> None:
        super().__init__(described.graph)
        self._parameters = parameters
        self._sites = {id(site.node): site for site in described.sites.values()}
        # The forms of codes that a value has; the first is what its own op writes, if that is here.
        self._forms: dict[int, list[Codes]] = {}
        self._written: set[int] = set()
        self._weights: dict[QuantizedTensor, int] = {}
        self.carried: set[str] = set()
        self.bytes: Counter[str] = Counter()

    def model(
        self, values: Sequence[int] | None = None, *, in_codes: bool = False
    ) -> bytes:
        """Return the whole model.

        Args:
            values: Old tensors that it puts out; None for its own outputs.
            in_codes: Take and return codes where the ops at the edge have them.
        """
        for node in self.graph.nodes:
            self._emit(node)
        wanted = self.graph.outputs if values is None else values
        outputs = [self._in_float(index) for index in wanted]
        if in_codes:
            outputs = self._without_edges(outputs)
        return self.finish(outputs)

    def _without_edges(self, outputs: list[int]) -> list[int]:
        """Leave out what alone rounds an input, or decodes an output; return the outputs."""
        for old in self.graph.inputs:
            users = [node for node in self.nodes if self.take(old) in node.inputs]
            if [self.name_of(node) for node in users] == ["QUANTIZE"]:
                self.nodes.remove(users[0])
                self.taken[old] = users[0].outputs[0]
        read = {index for node in self.nodes for index in node.inputs}
        for node in [n for n in self.nodes if self.name_of(n) == "DEQUANTIZE"]:
            if node.outputs[0] in outputs and node.outputs[0] not in read:
                self.nodes.remove(node)
                outputs = [
                    node.inputs[0] if i == node.outputs[0] else i for i in outputs
                ]
        return outputs

    def _emit(self, node: Any) -> None:
        known = len(self.tensors)
        site = self._sites.get(id(node))
        given = self._parameters.get(site.op.name) if site is not None else None
        if site is not None and given is not None and not given.scheme.is_float:
            _WRITERS[given.scheme.mode](self, site, given)
        elif site is not None and site.carries and site.read[0] in self._written:
            x = self._forms[site.read[0]][0]
            self._in_integers(site, {site.positions[0]: x.tensor}, x.meaning)
            self.carried.add(site.op.name)
        else:
            self._in_numbers(node, {})
        owner = site.op.name if site is not None else REST
        self.bytes[owner] += sum(map(self.size_of, self.tensors[known:]))

    def _in_integers(
        self, site: Site, replaced: Mapping[int, int], meaning: Meaning
    ) -> None:
        """Write an operator whose results are codes."""
        written = [int(index) for index in site.node.outputs]
        outputs = [self._coded(old, meaning).tensor for old in written]
        self._written.update(written)
        inputs = self._inputs(site.node, replaced)
        version = version_of(site.code, meaning)
        node = self.node(site.code, inputs, outputs, site.node, version)
        if is_within_six(node, meaning):
            # The kernels refuse a 6 that is no 32-bit code; these codes end before it anyway.
            node.builtinOptions = copy(node.builtinOptions)
            node.builtinOptions.fusedActivationFunction = fb.ActivationFunctionType.RELU

    def _in_numbers(self, node: Any, replaced: Mapping[int, int]) -> None:
        """Write an operator whose results are float, or no matter of precision."""
        code = self.graph.code(node)
        if code == "SHAPE" and int(node.inputs[0]) in self._written:
            replaced = {0: self._forms[int(node.inputs[0])][0].tensor}
        inputs = self._inputs(node, replaced)
        made = self.node(code, inputs, [self.take(int(i)) for i in node.outputs], node)
        if node.intermediates is not None and len(node.intermediates):
            made.intermediates = [self.take(int(i)) for i in node.intermediates]

    def _inputs(self, node: Any, replaced: Mapping[int, int]) -> list[int]:
        """Return an operator's inputs: some replaced, the others in float."""
        old = {at: int(index) for at, index in enumerate(node.inputs)}
        places = range(max([*old, *replaced], default=-1) + 1)
        kept = {at: old.get(at, -1) for at in places if at not in replaced}
        found = {at: self._in_float(index) for at, index in kept.items()}
        return [{**found, **replaced}[at] for at in places]

    # Activations

    def _in_float(self, old: int) -> int:
        """Return the new tensor of a value in float."""
        if old in self._written and old not in self.taken:
            codes = self._forms[old][0].tensor
            self.node("DEQUANTIZE", [codes], [self.take(old)], version=2)
        return self.take(old)

    def _in_codes(self, old: int, params: QuantParams | None, site: Site) -> Codes:
        """Return a value's codes: those that its own op writes, or ones of this scale."""
        if params is None:
            raise SchemeError(
                f"op {site.op.name!r} is static, and an input has no parameters"
            )
        meaning = meaning_of(params)
        known = self._forms.get(old, [])
        is_free = old in self._written and site.code != "CONCATENATION"
        for codes in known:
            flows = is_free and codes is known[0] and codes.dtype == meaning[0]
            if flows or codes.meaning == meaning:
                return codes
        is_rescaled = old in self._written and known[0].dtype == meaning[0]
        source = known[0].tensor if is_rescaled else self._in_float(old)
        made = self._coded(old, meaning)
        self.node("QUANTIZE", [source], [made.tensor])
        return made

    def _coded(self, old: int, meaning: Meaning) -> Codes:
        """Return a new form of a value in codes; nothing writes it yet."""
        known = self._forms.setdefault(old, [])
        suffix = f"/{meaning[0]}" + (f"_{len(known) + 1}" if known else "")
        tensor = self.like(old, meaning[0], quantization(*meaning[1:]), suffix)
        known.append(Codes(tensor, *meaning))
        return known[-1]

    # Ops

    def _static(self, site: Site, given: OpParameters) -> None:
        read = zip(site.positions, site.read, given.inputs, strict=True)
        codes = [(at, self._in_codes(old, params, site)) for at, old, params in read]
        replaced = {at: x.tensor for at, x in codes}
        x, weight = codes[0][1], given.weight
        if weight is not None:
            bias = self._bias(site, given)
            if bias is not None and site.bias is not None:
                whole, scale, weight = integer_bias(bias, weight, x.scale)
                # 16-bit activations are summed in 64 bits.
                wide = "int64" if x.dtype == "int16" else "int32"
                quant = quantization(scale, np.zeros_like(scale))
                replaced[site.bias] = self._new(site, "bias", whole.astype(wide), quant)
            replaced[site.weight or 0] = self._weight(site, weight)
        elif given.scheme.input is not None:
            replaced |= self._constants(site, given.scheme.input)
        self._in_integers(site, replaced, result_of(site, given, x))

    def _constants(self, site: Site, spec: QuantSpec) -> dict[int, int]:
        """Return an operator's constant operands in codes, over the range that they have."""
        found = {}
        for at, old in enumerate(site.node.inputs):
            array = self.graph.constant(int(old))
            if array is not None and array.dtype == np.float32:
                params = affine_params(array.min(), array.max(), spec)
                codes = np.asarray(quantize(array, params)).astype(spec.dtype)
                quant = quantization(*meaning_of(params)[1:])
                found[at] = self._new(site, f"operand_{at}", codes, quant)
        return found

    def _bias(self, site: Site, given: OpParameters) -> np.ndarray | None:
        if given.bias is not None:
            return np.asarray(given.bias, np.float32)
        if site.op.bias is None:
            return None
        return self.graph.constant(int(site.node.inputs[site.bias or 0]))

    def _new(self, site: Site, what: str, array: np.ndarray, quant: Any = None) -> int:
        """Return a new constant of an op."""
        type_, buffer = TYPES[str(array.dtype)], buffer_of(array)
        return self.constant(
            f"{site.op.name}/{what}", array.shape, type_, buffer, quant
        )

    def _weight(self, site: Site, weight: QuantizedTensor, scale: Any = None) -> int:
        """Return a weight's codes as a constant; ops that share it share that too."""
        if weight not in self._weights:
            params = weight.params
            axis = 0 if params.axis is None else site.axes[params.axis]
            quant = quantization(params.scale, params.zero_point, axis)
            if scale is not None or params.spec.dtype == "float16":
                quant = scale
            shape = [weight.shape[site.axes.index(at)] for at in range(len(site.axes))]
            type_ = getattr(fb.TensorType, params.spec.dtype.upper())
            name = f"{site.op.name}/{params.spec.dtype}"
            held = self.constant(name, shape, type_, packed(weight, site), quant)
            self._weights[weight] = held
        return self._weights[weight]

    def _beside(self, site: Site, given: OpParameters, weight: int) -> dict[int, int]:
        """Return what takes the place of a weight, and of a corrected bias, in an op over float."""
        replaced = {site.weight or 0: weight}
        if given.bias is not None and site.bias is not None:
            bias = np.asarray(given.bias, np.float32)
            replaced[site.bias] = self._new(site, "bias", bias)
        return replaced

    def _hybrid(self, site: Site, given: OpParameters) -> None:
        """Write an op over float activations and a weight in codes.

        The kernel finds the scales of its input by itself.
        """
        assert given.weight is not None
        weight = self._weight(site, given.weight)
        self._in_numbers(site.node, self._beside(site, given, weight))

    def _stored(self, site: Site, given: OpParameters) -> None:
        """Write a float op whose weight is stored in codes, and decoded before it."""
        assert given.weight is not None and site.weight is not None
        if site.op.type == "embedding":
            self._looked_up(site, given.weight)
            return
        held = self._weight(site, given.weight)
        old = int(site.node.inputs[site.weight])
        decoded = self.like(old, "float32", None, "/decoded")
        self.node("DEQUANTIZE", [held], [decoded], version=3)
        self._in_numbers(site.node, self._beside(site, given, decoded))

    def _looked_up(self, site: Site, weight: QuantizedTensor) -> None:
        """Write a look-up in a table of codes, multiplied by what is looked up of their scales."""
        one = quantization(1.0, 0)
        inputs = self._inputs(site.node, {0: self._weight(site, weight, one)})
        old = int(site.node.outputs[0])
        codes = self.like(old, "int8", one, "/codes")
        whole, factor = (
            self.like(old, "float32", None, end) for end in ("/whole", "/scale")
        )
        self.tensors[factor].shape = [*self.tensors[factor].shape[:-1], 1]
        self.tensors[factor].shapeSignature = None
        scale = np.asarray(weight.params.scale, np.float32).reshape(-1, 1)
        scales = self._new(site, "scale", scale)
        self.node("GATHER", inputs, [codes], site.node, version=2)
        self.node("DEQUANTIZE", [codes], [whole], version=2)
        self.node("GATHER", [scales, *inputs[1:]], [factor], site.node)
        self.node("MUL", [whole, factor], [self.take(old)])


_WRITERS = {
    "static": Emission._static,
    "dynamic": Emission._hybrid,
    "weight_only": Emission._stored,
    "cast": Emission._stored,
}
