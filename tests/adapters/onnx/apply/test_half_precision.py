"""Half-precision islands: single ops in float16 or bfloat16 in a model that is float32
elsewhere."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.offers import capability
from octavo.adapters.onnx.session import OnnxSession
from octavo.core.contract.adapter import Candidate, OpParameters
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, QuantSpec
from tests.adapters.onnx import models

TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def cast(session: OnnxSession, chosen: dict[str, str]) -> Candidate:
    """Carry ``cast`` out for some ops; op name -> type."""
    schemes = {
        name: OpScheme(mode="cast", weight=QuantSpec(dtype=dtype))
        for name, dtype in chosen.items()
    }
    parameters = {}
    for name, scheme in schemes.items():
        op = session.describe().by_name[name]
        assert op.weight is not None
        assert scheme.weight is not None
        codes = session.tensor(op.weight.name).astype(TYPES[chosen[name]])
        parameters[name] = OpParameters(
            scheme,
            QuantizedTensor(
                codes, QuantParams(np.float32(1), np.int32(0), scheme.weight)
            ),
        )
    return session.apply(Recipe(schemes, backend="onnx"), parameters)


def chain() -> onnx.ModelProto:
    """Conv with ReLU, conv, and a product with an added bias."""
    t = models.weights(w1=(8, 3, 3, 3), b1=(8,), w2=(8, 8, 1, 1), w3=(12, 6), b3=(6,))
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2"),
        helper.make_node("MatMul", ["c2", "w3"], ["p"], "product"),
        helper.make_node("Add", ["b3", "p"], ["y"], "bias"),
    ]
    return models.build(nodes, t, {"x": ["n", 3, 12, 12]}, {"y": ["n", 8, 12, 6]})


def test_neighbouring_islands_are_one() -> None:
    """Two casts around three ops; the answer is float32's to within float16's 11 bits, and the
    weights take half the bytes."""
    proto, x = chain(), models.images(1)[0][0]
    candidate = cast(
        OnnxAdapter(OnnxConfig(threads=1)).open(proto),
        dict.fromkeys(("conv1", "conv2", "product"), "float16"),
    )
    made = candidate.native.model
    onnx.checker.check_model(made, full_check=True)
    assert [n.op_type for n in made.graph.node] == [
        "Cast",
        "Conv",
        "Relu",
        "Conv",
        "MatMul",
        "Add",
        "Cast",
    ]
    assert {t.data_type for t in made.graph.initializer} == {onnx.TensorProto.FLOAT16}
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_allclose(
        candidate.native(x), expected, atol=4e-3 * np.abs(expected).max()
    )
    assert np.any(candidate.native(x) != expected)


def test_islands_of_two_types_or_with_float_readers_keep_their_casts() -> None:
    proto, x = chain(), models.images(1)[0][0]
    proto.graph.output.append(
        helper.make_tensor_value_info("r1", onnx.TensorProto.FLOAT, ["n", 8, 12, 12])
    )
    candidate = cast(
        OnnxAdapter(OnnxConfig(threads=1)).open(proto),
        {"conv1": "float16", "conv2": "float16"},
    )
    made = candidate.native.model
    assert [o.name for o in made.graph.output] == ["y", "r1"]
    assert [n.op_type for n in made.graph.node].count(
        "Cast"
    ) == 3  # in, out to the reader of floats, out
    for got, expected in zip(
        candidate.run((x,)), ReferenceEvaluator(proto).run(None, {"x": x}), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=4e-3 * np.abs(expected).max())


def test_only_what_computes_in_half_precision_is_a_kernel() -> None:
    """ONNX Runtime's CPU provider puts Casts around products; it moves rows of a table in any type;
    it has no bfloat16 product."""
    offers = capability(OnnxConfig()).offers
    found = {
        kind: {
            o.scheme.weight.dtype: o.realization
            for o in offers[kind]
            if o.scheme.mode == "cast" and o.scheme.weight
        }
        for kind in offers
    }
    assert found["embedding"] == {"float16": "kernel", "bfloat16": "kernel"}
    assert (
        found["linear"]
        == found["conv"]
        == found["conv_transpose"]
        == {"float16": "simulated"}
    )


def test_the_ledger_reads_the_optimized_graph() -> None:
    ledger = cast(
        OnnxAdapter(OnnxConfig(threads=1)).open(models.transformer_block()),
        {"embed": "bfloat16", "up": "float16"},
    ).ledger
    assert (ledger["embed"].realization, ledger["embed"].reason) == (
        "kernel",
        "Gather in bfloat16",
    )
    assert (ledger["up"].realization, ledger["up"].reason) == (
        "simulated",
        "ONNX Runtime computes it in float32",
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_table_in_half_precision_gives_its_rounded_rows(dtype: str) -> None:
    table = models.weights(table=(20, 8))
    proto = models.build(
        [helper.make_node("Gather", ["table", "ids"], ["y"], "embed")],
        table,
        {"ids": ["n"]},
        {"y": ["n", 8]},
        input_type=onnx.TensorProto.INT64,
    )
    result = octavo.quantize_model(proto, dtype, calibration=[(np.array([1, 2]),)])
    ids = np.array([3, 19, 0])
    np.testing.assert_array_equal(
        result.model(ids), table["table"].astype(TYPES[dtype])[ids].astype(np.float32)
    )
