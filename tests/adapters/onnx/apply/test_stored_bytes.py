"""What weights take in an ONNX file: the bytes that are believed; the numbers that the formula of
quantization gives; and kernels that nothing of it slows."""

from __future__ import annotations

from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.apply.emit import emit
from octavo.adapters.onnx.kernels.probing import Probe
from octavo.adapters.onnx.offers import capability
from octavo.adapters.onnx.run.compiling import compile_model
from octavo.core.contract.adapter import OpParameters
from octavo.core.contract.algorithm import WeightContext
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.algorithms import RtnConfig
from octavo.core.quantizing.algorithms.rtn import RoundToNearest
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.sizes import scheme_bytes
from tests.adapters.onnx import models

CONFIG = OnnxConfig(threads=1)
CASES = ((68, "group:"), (96, "uint4-asym/group:32"), (1056, "scale:uint8"))
"""Features, and which schemes: a short last group; three, whose zero points end within a byte; more
scales than share a second level."""
OUTPUTS = 12


def rounded(weight: np.ndarray, spec: QuantSpec, axis: int) -> QuantizedTensor:
    matrix = np.ascontiguousarray(np.moveaxis(weight, axis, 0))
    found = RoundToNearest(RtnConfig()).quantize(matrix, spec, WeightContext())
    codes = np.ascontiguousarray(np.moveaxis(np.asarray(found.codes), 0, axis))
    params = QuantParams(found.params.scale, found.params.zero_point, spec, axis)
    return QuantizedTensor(codes, params, found.extra)


def by_formula(weight: QuantizedTensor, axis: int) -> np.ndarray:
    """scale * (code - zero point), each with the scale and zero point of its group."""
    params = weight.params
    codes = np.moveaxis(np.asarray(weight.codes), axis, 0).astype(np.float32)
    size = params.spec.group_size
    features = codes.shape[1]
    scale = np.repeat(params.scale, size, axis=1)[:, :features]
    zero = np.repeat(params.zero_point, size, axis=1)[:, :features]
    return np.moveaxis(scale * (codes - zero), 0, axis)


def in_groups() -> list[tuple[str, OpScheme]]:
    """Every offer with a weight in groups, with every format of its scales."""
    offers = capability(CONFIG, ["linear", "embedding"]).offers
    return [
        (kind, scheme)
        for kind, found in offers.items()
        for scheme in (s for offer in found for s in offer.schemes)
        if scheme.weight is not None and scheme.weight.group_size is not None
    ]


def opened(kind: str, weight: np.ndarray) -> Any:
    t = {"w": weight}
    if kind == "linear":
        node = helper.make_node("MatMul", ["x", "w"], ["y"], "op")
        given, kinds = {"x": ["n", weight.shape[0]]}, onnx.TensorProto.FLOAT
    else:
        node = helper.make_node("Gather", ["w", "ids"], ["y"], "op")
        given, kinds = {"ids": ["n"]}, onnx.TensorProto.INT64
    shape = {"y": ["n", weight.shape[1]]}
    return OnnxAdapter(CONFIG).open(
        models.build([node], t, given, shape, input_type=kinds)
    )


def bytes_in_file(path: Path) -> int:
    held = onnx.load(path).graph.initializer
    return sum(len(tensor.raw_data) for tensor in held)


@pytest.mark.parametrize(("features", "named"), CASES)
def test_groups_take_what_is_believed_and_give_what_the_formula_gives(
    features: int, named: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for kind, scheme in in_groups():
        spec = scheme.weight
        if spec is None or named not in str(spec):
            continue
        axis = 1 if kind == "linear" else 0
        shape = (features, OUTPUTS) if kind == "linear" else (OUTPUTS, features)
        array = rng.normal(size=shape).astype(np.float32)
        weight = rounded(array, spec, axis)
        session = opened(kind, array)
        candidate = session.apply(
            Recipe({"op": scheme}, backend="onnx"), {"op": OpParameters(scheme, weight)}
        )
        assert candidate.ledger["op"].realization == "kernel"
        candidate.save(tmp_path)
        path = tmp_path / "model.onnx"
        believed = scheme_bytes(scheme, (OUTPUTS, features))
        assert bytes_in_file(path) == believed, scheme
        expected = by_formula(weight, axis)
        given: np.ndarray = np.array([0, 7, OUTPUTS - 1])
        if kind == "linear":
            # Each feature by itself: no rounding but that of int8, where activations take it.
            given = np.eye(features, dtype=np.float32)
        else:
            expected = expected[given]
        (got,) = candidate.run((given,))
        tolerance = {"rtol": 1e-6} if scheme.mode == "weight_only" else {"rtol": 1e-4}
        np.testing.assert_allclose(got, expected, atol=1e-6, **tolerance)
        # The file by itself, in a session of the runtime's own.
        alone = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        (name,) = [i.name for i in alone.get_inputs()]
        np.testing.assert_array_equal(alone.run(None, {name: given})[0], got)
        seen.add((kind, spec.dtype, spec.scale_dtype))
    if named == "group:":
        formats = {None, "float16", "bfloat16", "uint8"}
        assert {
            *product(["linear"], ["uint4", "int4", "int8", "int2"], formats)
        } <= seen
        assert {*product(["embedding"], ["uint4", "int8"], formats)} <= seen
    assert seen


def test_the_runtime_widens_scales_once_and_runs_the_kernel_alone() -> None:
    """Whatever the file writes beside a kernel is gone from the graph that is executed."""
    array = np.random.default_rng(0).normal(size=(68, OUTPUTS)).astype(np.float32)
    for kind, scheme in in_groups():
        if kind != "linear" or scheme.weight is None:
            continue
        session = opened(kind, array)
        weight = rounded(array, scheme.weight, 1)
        candidate = session.draft(
            Recipe({"op": scheme}, backend="onnx"), {"op": OpParameters(scheme, weight)}
        )
        compiled = compile_model(candidate.native.graph, CONFIG, inspect=True)
        assert [node.op_type for node in compiled.nodes] == ["MatMulNBits"], scheme


def test_what_is_beside_the_codes_of_groups_of_32_by_default() -> None:
    offers = capability(CONFIG, ["linear", "embedding"]).offers
    for offer in (*offers["linear"], *offers["embedding"]):
        spec = offer.scheme.weight
        if spec is None or spec.group_size != 32:
            continue
        bits = 8 * scheme_bytes(offer.scheme, (512, 512)) / 512**2
        assert bits - spec.bits <= 0.6


KINDS = (
    "conv", "conv_transpose", "linear", "embedding", "batched_linear", "lstm", "gru", "rnn",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_offer_writes_what_is_believed(kind: str) -> None:
    """Tensors that are named after a weight: its codes, its scales, its zero points."""
    probe = Probe.of(kind, CONFIG)
    op = probe.sites.sites["probe"].op
    offers = capability(CONFIG, [kind]).offers[kind]
    assert offers
    for offer in offers:
        parameters = probe._parameters(offer.scheme, is_narrow=False)
        model, _ = emit(probe.model, probe.sites, {"probe": parameters})
        for weight in op.weights:
            believed = scheme_bytes(offer.scheme, weight.shape, weight.channel_axis)
            assert bytes_of(model, weight.name) == believed, offer.scheme


def bytes_of(model: ir.Model, weight: str) -> int:
    found = 0
    for name, value in model.graph.initializers.items():
        purpose = name.removeprefix(weight)
        is_bias = "bias" in purpose
        if name.startswith(weight) and not is_bias and value.const_value is not None:
            found += value.const_value.nbytes
    return found


def test_zero_points_that_a_kernel_asks_for_are_one_tensor_for_all() -> None:
    """Products of signed weights fuse with zero points alone; weights of as many channels share
    them."""
    t = models.weights(a=(16, 16), b=(16,), c=(16, 16))
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["h"], "first"),
        helper.make_node("Gemm", ["h", "c", "b"], ["y"], "second"),
    ]
    proto = models.build(nodes, t, {"x": ["n", 16]}, {"y": ["n", 16]})
    session = OnnxAdapter(CONFIG).open(proto)
    u8 = QuantSpec(dtype="uint8", symmetric=False)
    s8 = QuantSpec(dtype="int8", granularity="channel")
    scheme = OpScheme(mode="static", weight=s8, input=u8)
    unit = QuantParams(np.float32(0.05), np.int32(128), u8)
    parameters = {
        op: OpParameters(scheme, rounded(t[w], s8, 1), (unit,))
        for op, w in (("first", "a"), ("second", "c"))
    }
    recipe = Recipe(dict.fromkeys(parameters, scheme), backend="onnx")
    candidate = session.apply(recipe, parameters)
    assert {line.realization for line in candidate.ledger.values()} == {"kernel"}
    per_channel = [
        numpy_helper.to_array(tensor)
        for tensor in candidate.native.model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and prod(tensor.dims) == 16
    ]
    assert len(per_channel) == 1
    assert not per_channel[0].any()
