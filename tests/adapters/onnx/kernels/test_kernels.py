"""What is emitted computes what the operator specifications say, on integer kernels."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.apply.packing import bias_tensors
from octavo.adapters.onnx.offers import capability
from octavo.adapters.onnx.prepare.preparation import prepare
from octavo.adapters.onnx.prepare.source import read
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import DataError, SchemeError
from octavo.core.numerics.affine import QuantParams, affine_params, quantize
from octavo.core.numerics.packing import pack
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, QuantSpec
from tests.adapters.onnx import models

U8 = QuantSpec(dtype="uint8", symmetric=False)
S8 = QuantSpec(dtype="int8", granularity="channel")


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=9)),
    st.sampled_from([2, 4, 8]),
)
@settings(max_examples=60, deadline=None)
def test_packed_codes_come_back(codes: np.ndarray, bits: int) -> None:
    codes = codes & np.uint8((1 << bits) - 1)
    packed = pack(codes, bits)
    unpacked = (
        packed[..., None] >> (np.arange(0, 8, bits, dtype=np.uint8))
    ) & np.uint8((1 << bits) - 1)
    np.testing.assert_array_equal(
        unpacked.reshape(*packed.shape[:-1], -1)[..., : codes.shape[-1]], codes
    )
    assert packed.shape[-1] == -(-codes.shape[-1] * bits // 8)


def test_a_bias_that_does_not_fit_enlarges_its_channels_scale() -> None:
    params = QuantParams(
        np.array([1e-9, 0.1], np.float32), np.zeros(2, np.int32), S8, 0
    )
    weight = QuantizedTensor(np.array([[100, -100], [100, -100]], np.int8), params)
    codes, scale, used = bias_tensors(np.array([5.0, 5.0], np.float32), weight, 1e-3)
    np.testing.assert_allclose(
        codes.numpy() * scale.numpy().astype(np.float64), [5, 5], rtol=1e-6
    )
    np.testing.assert_array_equal(used.params.scale[1], params.scale[1])
    assert (
        np.abs(
            np.asarray(used.codes[0]) * used.params.scale[0] - weight.codes[0] * 1e-9
        ).max()
        <= used.params.scale[0] / 2
    )


def linear(
    scheme: OpScheme, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray, OpParameters]:
    """Run a linear op under a scheme; return what came out, the float weight and the parameters."""
    w = models.weights(w=(32, 8), b=(8,))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
        helper.make_node("Add", ["p", "b"], ["y"], "bias"),
    ]
    session = OnnxAdapter(OnnxConfig(threads=1)).open(
        models.build(nodes, w, {"x": ["n", 32]}, {"y": ["n", 8]})
    )
    # In reach of CPUs without VNNI, whose products of whole bytes saturate.
    spec = S8.reduced()
    params = affine_params(np.abs(w["w"]).max(0) * -1, np.abs(w["w"]).max(0), spec, 1)
    quantized = QuantizedTensor(quantize(w["w"], params).astype(np.int8), params)
    inputs = (affine_params(x.min(), x.max(), U8),) if scheme.mode == "static" else ()
    parameters = OpParameters(scheme, quantized, inputs)
    candidate = session.apply(
        Recipe({"product": scheme}, backend="onnx"), {"product": parameters}
    )
    assert candidate.ledger["product"].realization == "kernel"
    return candidate.native(x), w["b"], parameters


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_linear_op_is_the_integer_product_of_its_codes(mode: str) -> None:
    """MatMulInteger's specification, spelled out in NumPy."""
    x = np.random.default_rng(3).normal(size=(5, 32)).astype(np.float32)
    got, bias, parameters = linear(OpScheme(mode=mode, weight=S8, input=U8), x)
    activation = (
        parameters.inputs[0]
        if parameters.inputs
        else affine_params(x.min(), x.max(), U8)
    )
    codes = quantize(x, activation) - activation.zero_point
    assert parameters.weight is not None
    exact = (codes @ np.asarray(parameters.weight.codes, np.int32)) * (
        activation.scale * parameters.weight.params.scale
    ) + bias
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("residual", ["Add", "Sum"])
def test_codes_flow_from_end_to_end(residual: str) -> None:
    """Residual add (older exporters write Sum), pools and reshape run on codes: one quantization at
    the input, one float result."""
    proto = models.convolutional()
    next(n for n in proto.graph.node if n.name == "residual").op_type = residual
    result = octavo.quantize_model(proto, "int8-static", calibration=models.images())
    ops = [n.op_type for n in result.model.model.graph.node]
    from octavo.adapters.onnx.run.compiling import compile_model

    optimized = [
        n.op_type
        for n in compile_model(result.model.graph, OnnxConfig(), inspect=True).nodes
    ]
    assert ops.count("QuantizeLinear") > 3
    assert optimized.count("QuantizeLinear") == 1
    assert not {"DequantizeLinear", "Conv", "Add", "Sum", "Gemm", "Relu"} & set(
        optimized
    )


def test_capability_offers_no_16_bit_kernels_here() -> None:
    """They compute in float: offered as simulated, so left out unless asked for."""
    offers = capability(OnnxConfig()).offers["conv"]
    sixteen = [
        o for o in offers if o.scheme.input is not None and o.scheme.input.bits == 16
    ]
    assert sixteen
    assert all(o.realization == "simulated" for o in sixteen)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_static_weights_of_4_bits_are_stored_and_computed_in_float(
    kind: str, tmp_path: Path
) -> None:
    offers = capability(OnnxConfig()).offers[kind]
    (four,) = [
        o
        for o in offers
        if o.scheme.mode == "static" and o.scheme.weight and o.scheme.weight.bits == 4
    ]
    assert four.realization == "simulated"
    proto = models.convolutional() if kind == "conv" else models.transformer_block()
    data = models.images() if kind == "conv" else models.tokens()
    rules = [{"types": [kind], "mode": "static", "weight": "int4"}]
    result = octavo.quantize_model(
        proto, {"rules": rules, "simulated": True}, calibration=data
    )
    packed = [
        t
        for t in result.model.model.graph.initializer
        if t.data_type == onnx.TensorProto.INT4 and t.name.endswith("_quantized")
    ]
    assert (
        len(packed)
        == sum(op.applied.weight_bits == 4 for op in result.ledger.values())
        > 1
    )
    onnx.checker.check_model(result.model.model, full_check=True)
    (expected,) = onnx.reference.ReferenceEvaluator(proto).run(
        None, {proto.graph.input[0].name: data[0][0]}
    )
    assert np.linalg.norm(result.model(*data[0]) - expected) < 0.35 * np.linalg.norm(
        expected
    )


def test_a_scheme_that_is_not_offered_is_refused() -> None:
    session = OnnxAdapter(OnnxConfig()).open(models.convolutional())
    scheme = OpScheme(
        mode="static",
        weight=QuantSpec(dtype="int3", granularity="channel"),
        input=U8,
        output=U8,
    )
    with pytest.raises(SchemeError, match="conv2"):
        session.apply(Recipe({"conv2": scheme}), {"conv2": OpParameters(scheme)})


def test_masked_rows_stay_zero() -> None:
    """The guard against rows that are masked throughout is taken apart without changing the
    function."""
    t = {
        "zero": np.float32(0),
        "minus": np.float32(-np.inf),
        "k": models.weights(k=(4, 6))["k"],
        "v": models.weights(1, v=(6, 4))["v"],
    }
    nodes = [
        helper.make_node("Where", ["keep", "zero", "minus"], ["mask"], "mask"),
        helper.make_node("MatMul", ["x", "k"], ["scores"], "scores"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], "masking"),
        helper.make_node("Softmax", ["masked"], ["p"], "softmax"),
        helper.make_node("IsNaN", ["p"], ["bad"], "bad"),
        helper.make_node("Where", ["bad", "zero", "p"], ["clean"], "guard"),
        helper.make_node("MatMul", ["clean", "v"], ["y"], "mix"),
    ]
    proto = models.build(nodes, t, {"x": [3, 4]}, {"y": [3, 4]})
    proto.graph.input.append(
        helper.make_tensor_value_info("keep", onnx.TensorProto.BOOL, [3, 6])
    )
    proto.graph.node.append(helper.make_node("Neg", ["y"], ["z"], "end"))
    proto.graph.output[0].name = "z"
    keep = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    expected = onnx.reference.ReferenceEvaluator(proto).run(
        None, {"x": x, "keep": keep}
    )[0]
    assert not any(n.op_type == "IsNaN" for n in prepare(read(proto)).graph)
    got = OnnxAdapter(OnnxConfig()).open(proto).apply(Recipe(), {}).run((x, keep))[0]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.all(got[2] == 0)


def test_masks_are_never_quantized() -> None:
    view = OnnxAdapter(OnnxConfig()).open(_masked()).describe()
    assert "masked" in view.by_name["masking"].out_of_reach


def _masked() -> onnx.ModelProto:
    t = models.weights(w=(4, 4, 1, 1)) | {"big": np.float32(-1e9)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["scores"], "scores"),
        helper.make_node("Mul", ["m", "big"], ["mask"], "mask"),
        helper.make_node("Add", ["scores", "mask"], ["y"], "masking"),
    ]
    proto = models.build(nodes, t, {"x": [1, 4, 3, 3]}, {"y": [1, 4, 3, 3]})
    proto.graph.input.append(
        helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, [1, 1, 3, 3])
    )
    return proto


def test_memory_bounded_observation_sees_the_same(tmp_path: Path) -> None:
    seen: dict[int, dict[str, list[np.ndarray]]] = {}
    batches = [(np.concatenate([b[0]] * 40),) for b in models.images(1)]
    for megabytes in (1, 512):
        session = OnnxAdapter(OnnxConfig(observe_megabytes=megabytes)).open(
            models.convolutional()
        )
        values = [v for op in session.describe().ops for v in op.inputs]
        found: dict[str, list[np.ndarray]] = {}
        session.observe(
            batches,
            values,
            lambda name, array, found=found: found.setdefault(name, []).append(
                array.copy()
            ),
        )
        seen[megabytes] = found
    assert seen[1].keys() == seen[512].keys()
    for name, arrays in seen[512].items():
        np.testing.assert_allclose(
            np.concatenate(seen[1][name]), np.concatenate(arrays), rtol=1e-4, atol=1e-5
        )


def test_observation_says_what_it_held(logged: pytest.LogCaptureFixture) -> None:
    batches = [(np.concatenate([b[0]] * 90),) for b in models.images(1)]
    for megabytes, runs, most in (
        (64, 1, 8 * 144 * 360 * 4 * 12),
        (1, 4, 1.1 * 8 * 144 * 360 * 4),
    ):
        session = OnnxAdapter(OnnxConfig(observe_megabytes=megabytes)).open(
            models.convolutional()
        )
        values = [v for op in session.describe().ops for v in op.inputs]
        assert session.facts() == ()
        logged.clear()
        session.observe(batches, values, lambda name, array: None)
        (fact,) = session.facts()
        assert fact in logged.text
        held = float(fact.split("at most ")[1].split(" MiB")[0]) * 2**20
        assert held <= most
        assert int(fact.split(" runs each")[0].split()[-1]) >= runs
        assert ("smaller batches" in logged.text) == (megabytes == 1)


def test_sizes_follow_from_shapes_and_are_measured_where_these_are_unknown(
    monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    """A data-dependent shape (NonZero) cannot be known before a run."""
    from octavo.adapters.onnx.observe import parts

    nodes = [
        helper.make_node("Relu", ["x"], ["positive"], "relu"),
        helper.make_node("NonZero", ["positive"], ["indices"], "nonzero"),
        helper.make_node("GatherND", ["positive", "pairs"], ["held"], "held"),
        helper.make_node("Transpose", ["indices"], ["pairs"], "transpose"),
        helper.make_node("Neg", ["held"], ["y"], "neg"),
    ]
    nodes[2], nodes[3] = nodes[3], nodes[2]
    session = OnnxAdapter(OnnxConfig(observe_megabytes=1)).open(
        models.build(nodes, {}, {"x": ["n", 4]}, {"y": ["k"]})
    )
    measured: list[list[str]] = []
    build = parts.parts_session
    monkeypatch.setattr(
        parts,
        "parts_session",
        lambda m, c, n, sizes=False: (
            measured.append(list(n)) if sizes else None,
            build(m, c, n, sizes=sizes),
        )[1],
    )
    x = np.ones((200_000, 4), np.float32)
    seen: dict[str, np.ndarray] = {}
    session.observe(
        [(x,)],
        ["positive", "held"],
        lambda name, array: seen.__setitem__(name, np.array(array)),
    )
    assert "'positive' alone takes 3 MiB" in logged.text
    assert measured == [["held"]]
    assert "2 runs each" in session.facts()[0]
    np.testing.assert_array_equal(seen["held"], x.ravel())


def test_calibration_that_is_not_finite_is_located() -> None:
    session = OnnxAdapter(OnnxConfig()).open(models.convolutional())
    bad = models.images(2)
    bad[1][0][0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"'x' of calibration batch 1"):
        session.observe(bad, ["x"], lambda name, array: None)


@pytest.mark.parametrize("dtype", ["uint4", "int4", "int8", "int2"])
@pytest.mark.parametrize("features", [64, 80])
def test_weight_only_ops_multiply_the_dequantized_weight(
    dtype: str, features: int
) -> None:
    """MatMulNBits and GatherBlockQuantized against the float product of scale * (codes - zero
    point), short last block included."""
    spec = QuantSpec(
        dtype=dtype, symmetric=dtype.startswith("i"), granularity="group:32"
    )
    t = models.weights(table=(20, features), w=(features, 8), b=(8,))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("MatMul", ["e", "w"], ["p"], "product"),
        helper.make_node("Add", ["b", "p"], ["y"], "bias"),
    ]
    proto = models.build(
        nodes, t, {"ids": ["n"]}, {"y": ["n", 8]}, input_type=onnx.TensorProto.INT64
    )
    session = OnnxAdapter(OnnxConfig(threads=1)).open(proto)
    schemes = {"product": OpScheme(mode="weight_only", weight=spec)}
    held = {"product": _grouped(t["w"], spec, 1)}
    table = t["table"]
    if dtype == "uint4":
        schemes["embed"], held["embed"] = (
            OpScheme(mode="weight_only", weight=spec),
            _grouped(table, spec, 0),
        )
        table = np.asarray(held["embed"].dequantize())
    candidate = session.apply(
        Recipe(schemes, backend="onnx"),
        {n: OpParameters(s, held[n]) for n, s in schemes.items()},
    )
    assert all(candidate.ledger[n].realization == "kernel" for n in schemes)
    ids = np.array([0, 7, 19])
    expected = table[ids] @ np.asarray(held["product"].dequantize()) + t["b"]
    np.testing.assert_allclose(candidate.native(ids), expected, rtol=1e-4, atol=1e-5)


def _grouped(array: np.ndarray, spec: QuantSpec, axis: int) -> QuantizedTensor:
    from octavo.core.contract.algorithm import WeightContext
    from octavo.core.quantizing.algorithms import RtnConfig
    from octavo.core.quantizing.algorithms.rtn import RoundToNearest

    found = RoundToNearest(RtnConfig()).quantize(
        np.ascontiguousarray(np.moveaxis(array, axis, 0)), spec, WeightContext()
    )
    params = QuantParams(found.params.scale, found.params.zero_point, spec, axis)
    return QuantizedTensor(
        np.ascontiguousarray(np.moveaxis(np.asarray(found.codes), 0, axis)),
        params,
        found.extra,
    )


def test_the_recipe_travels_in_the_file(tmp_path: Path) -> None:
    made = octavo.quantize_model(
        models.transformer_block(), "int8-dynamic", calibration=models.tokens()
    )

    proto = made.model.model
    assert [i.name for i in proto.graph.input] == ["ids"]
    assert [o.name for o in proto.graph.output] == ["y"]
    made.save(tmp_path / "out")
    loaded = octavo.load(tmp_path / "out")
    ids = models.tokens()[0]
    np.testing.assert_array_equal(np.asarray(loaded(*ids)), made.model(*ids))
