"""One-op models by which ONNX Runtime is asked what it makes of a scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.apply.emit import emit
from octavo.adapters.onnx.describe.sites import Sites, find_sites
from octavo.adapters.onnx.prepare.opset import as_model
from octavo.adapters.onnx.prepare.preparation import prepare
from octavo.adapters.onnx.run.compiling import RUNTIME_ERRORS, Compiled, compile_model
from octavo.core.authoring.one_op import one_op_parameters
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import AdapterFault, ModelError
from octavo.core.system.log import fault, get_logger
from octavo.core.values.capability import Offer
from octavo.core.values.graph import Op
from octavo.core.values.scheme import OpScheme

from .executed import low_precision_kernels
from .saturation import is_signed_product, saturates

logger = get_logger("onnx")

_NO_KERNEL = (
    "NOT_IMPLEMENTED",
    "Type Error",
    "No Op registered",
    "is not a registered function/op",
    "while running",
)
"""What ONNX Runtime says where it has no kernel.

For an operator, for a tensor's type, or for the settings, in the kernel itself.
"""

_LARGEST_ERROR = {16: 0.02, 8: 0.1, 4: 0.3, 2: 1.0}
"""Bits of the weight -> how far an answer may be from float's, as a share of its norm."""

_Shapes = Sequence[tuple[int, ...]]

_PROBES: Mapping[str, tuple[str, Mapping[str, Any], _Shapes, _Shapes]] = {
    # op type: (ONNX op, attributes, shapes of activations, shapes of constants)
    "conv": ("Conv", {"pads": [1, 1, 1, 1]}, [(1, 8, 6, 6)], [(16, 8, 3, 3), (16,)]),
    "conv_transpose": ("ConvTranspose", {}, [(1, 8, 6, 6)], [(8, 16, 2, 2), (16,)]),
    "linear": ("MatMul", {}, [(2, 3, 256)], [(256, 16)]),
    "matmul": ("MatMul", {}, [(2, 4, 16), (2, 16, 8)], []),
    "embedding": ("Gather", {}, [], [(40, 256)]),
    "add": ("Add", {}, [(1, 8, 6, 6), (1, 8, 6, 6)], []),
    "mul": ("Mul", {}, [(1, 8, 6, 6), (1, 8, 6, 6)], []),
    "concat": ("Concat", {"axis": 1}, [(1, 8, 6, 6), (1, 8, 6, 6)], []),
    "avg_pool": ("GlobalAveragePool", {}, [(1, 8, 6, 6)], []),
    "sigmoid": ("Sigmoid", {}, [(1, 8, 6, 6)], []),
    "leaky_relu": ("LeakyRelu", {}, [(1, 8, 6, 6)], []),
    "batched_linear": ("MatMul", {}, [(2, 2, 3, 16)], [(2, 16, 8)]),
    "gru": (
        "GRU",
        {"hidden_size": 8},
        [(5, 2, 16)],
        [(1, 24, 16), (1, 24, 8), (1, 48)],
    ),
    "rnn": ("RNN", {"hidden_size": 8}, [(5, 2, 16)], [(1, 8, 16), (1, 8, 8), (1, 16)]),
    "lstm": (
        "LSTM",
        {"hidden_size": 8},
        [(5, 2, 16)],
        [(1, 32, 16), (1, 32, 8), (1, 64)],
    ),
    "softmax": ("Softmax", {"axis": -1}, [(4, 16)], []),
}


@dataclass(frozen=True)
class Probe:
    """A one-op model with an input and what it answers in float."""

    kind: str
    config: OnnxConfig
    model: ir.Model
    sites: Sites
    given: Mapping[str, np.ndarray]
    expected: np.ndarray

    @classmethod
    def of(cls, kind: str, config: OnnxConfig) -> Probe:
        """Build the probe of an op type; always the same one."""
        rng = np.random.default_rng(0)
        op_type, attributes, activations, shapes = _PROBES[kind]
        constants = [rng.normal(size=s).astype(np.float32) for s in shapes]
        model = _one_op(op_type, attributes, activations, constants)
        given: dict[str, np.ndarray] = {}
        for i, shape in enumerate(activations):
            given[f"x{i}"] = rng.normal(size=shape).astype(np.float32)
        if kind == "embedding":
            given = {"ids": np.arange(0, 40, 3)}
        session = compile_model(model, config).session
        (expected,) = session.run(None, given)
        sites = find_sites(model.graph)
        return cls(kind, config, model, sites, given, expected)

    def ask(self, scheme: OpScheme) -> Offer | None:
        """Quantize the model and see what the runtime makes of it.

        What fuses into an integer kernel and answers close to float is offered as ``kernel``; what
        runs but stays float arithmetic as ``simulated``; None if it cannot run or answers wrongly.
        """
        providers = self.config.providers
        narrowed = None
        if is_signed_product(scheme):
            narrowed = partial(saturates, providers)
        is_narrow = narrowed is not None and bool(narrowed())
        # Where products saturate the offer is for weights of seven bits, and so is the probe.
        parameters = self._parameters(scheme, is_narrow=is_narrow)
        model, emitted = emit(self.model, self.sites, {"probe": parameters})
        ran = self._run(model, scheme)
        if ran is None:
            return None
        compiled, answer = ran
        bits = scheme.weight.bits if scheme.weight else 8
        error = np.linalg.norm(answer - self.expected)
        largest = _LARGEST_ERROR[bits] * np.linalg.norm(self.expected)
        if error > largest:
            return None
        is_symmetric = scheme.output is not None and scheme.output.symmetric
        fused = low_precision_kernels(compiled.nodes, emitted)
        return Offer(
            scheme,
            "kernel" if fused else "simulated",
            _why_not_with_activation if is_symmetric else None,
            narrowed,
            _why_slower(self.kind, scheme),
        )

    def _parameters(self, scheme: OpScheme, *, is_narrow: bool) -> OpParameters:
        """Calibrate the probe on its own input."""
        seen = {**self.given, "probe_output": self.expected}
        op = self.sites.sites["probe"].op
        return one_op_parameters(op, scheme, self._tensor, reduced=is_narrow, seen=seen)

    def _tensor(self, name: str) -> np.ndarray:
        held = self.model.graph.initializers[name].const_value
        assert held is not None
        return held.numpy()

    def _run(
        self, model: ir.Model, scheme: OpScheme
    ) -> tuple[Compiled, np.ndarray] | None:
        """Return the compiled model and its answer; None where the runtime refuses it."""
        try:
            compiled = compile_model(model, self.config, inspect=True)
            (answer,) = compiled.session.run(None, dict(self.given))
        except RUNTIME_ERRORS as error:
            self._note_refusal(scheme, error)
            return None
        except ModelError as error:
            if not isinstance(error.__cause__, RUNTIME_ERRORS):
                raise
            self._note_refusal(scheme, error)
            return None
        return compiled, answer

    def _note_refusal(self, scheme: OpScheme, error: Exception) -> None:
        """Note that the runtime has no kernel.

        Whatever else it says of what was written is a fault of the writer, and told.
        """
        told = str(error)
        if any(said in told for said in _NO_KERNEL):
            logger.debug("%s: %s is not offered: %s", self.kind, scheme, error)
            return
        what = f"onnx: {scheme} for {self.kind} is written wrongly, and not offered: {error}"
        fault(AdapterFault(what), "onnx")


def _why_slower(kind: str, scheme: OpScheme) -> str:
    """Return why a scheme is slower than float on every processor that was tried; else empty.

    ConvInteger, to which dynamic schemes of convolutions come down, multiplies signed weights
    without the packing that QLinearConv has: 0.09 of float's speed on AVX2, 0.2 with VNNI (ONNX
    Runtime 1.32, 3x3 of 64 channels and whole networks). Of unsigned weights it is about as fast as
    float.
    """
    if kind != "conv" or scheme.mode != "dynamic" or scheme.weight is None:
        return ""
    if scheme.weight.dtype != "int8":
        return ""
    return (
        "ONNX Runtime's ConvInteger has 0.1 to 0.2 of float's speed with signed weights; "
        "take a static scheme"
    )


def _why_not_with_activation(op: Op) -> str:
    """ReLU and ReLU6 vanish into the output's clipping only where codes begin at 0."""
    if op.attributes.get("activation"):
        return "its fused activation needs an asymmetric output"
    return ""


def _one_op(
    op_type: str,
    attributes: Mapping[str, Any],
    activations: _Shapes,
    constants: Sequence[Any],
) -> ir.Model:
    inputs, held, names = [], [], []
    for i, shape in enumerate(activations):
        declared = helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape)
        inputs.append(declared)
        names.append(f"x{i}")
    for i, array in enumerate(constants):
        held.append(numpy_helper.from_array(array, f"c{i}"))
        names.append(f"c{i}")
    if op_type == "Gather":
        inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])]
        names = ["c0", "ids"]
    node = helper.make_node(op_type, names, ["probe_output"], "probe", **attributes)
    output = helper.make_tensor_value_info("probe_output", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "probe", inputs, [output], held)
    return prepare(ir.from_proto(as_model(graph)))
