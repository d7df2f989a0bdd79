"""The ONNX backend's census against a count by hand."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import octavo

RANDOM = np.random.default_rng(0)


def held(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RANDOM.normal(size=shape).astype(np.float32), name)


def model(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], width: int
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )


def batches() -> list[dict[str, np.ndarray]]:
    return [{"x": RANDOM.normal(size=(8, 16)).astype(np.float32)}]


def test_constants_that_no_op_claims_are_rows_and_dead_ones_are_not() -> None:
    constant = helper.make_node("Constant", [], ["shift"], "c", value=held("", 1, 32))
    nodes = [
        constant,
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("Sub", ["h", "shift"], ["s"], "shifted"),
        helper.make_node("MatMul", ["s", "dead"], ["nobody"], "dead_end"),
        helper.make_node("MatMul", ["s", "v"], ["y"], "second"),
    ]
    made = model(
        nodes,
        [
            held("w", 16, 32),
            held("dead", 32, 99),
            held("v", 32, 4),
            held("orphan", 7, 7),
        ],
        4,
    )
    quantized = octavo.quantize_model(made, "int8-dynamic", batches())
    coverage = quantized.coverage
    assert coverage.total == 16 * 32 + 32 + 32 * 4
    assert coverage.quantized == 16 * 32 + 32 * 4
    assert [
        (row.weight, row.elements, row.op) for row in coverage.rows if row.is_float
    ] == [("shift", 32, None)]
    assert coverage.summary() in quantized.notes


def test_weights_in_bodies_are_counted() -> None:
    def body(name: str, weight: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["N", 4])
        return helper.make_graph(
            [helper.make_node("MatMul", ["h", weight], [f"{name}_out"], name)],
            name,
            [],
            [out],
            [held(weight, 32, 4)],
        )

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("ReduceMax", ["x"], ["m"], "largest", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["c"], "test"),
        helper.make_node(
            "If",
            ["c"],
            ["y"],
            "branch",
            then_branch=body("yes", "a"),
            else_branch=body("no", "b"),
        ),
    ]
    tensors = [held("w", 16, 32), numpy_helper.from_array(np.float32(0), "zero")]
    coverage = octavo.quantize_model(
        model(nodes, tensors, 4), "int8-dynamic", batches()
    ).coverage
    assert coverage.total == 16 * 32 + 2 * 32 * 4
    assert {row.weight for row in coverage.rows} == {"w", "a", "b"}


def test_one_weight_in_two_layouts_is_one_weight_and_what_is_computed_from_none_is_none() -> (
    None
):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("Transpose", ["w"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["h", "turned"], ["b"], "second"),
        helper.make_node("Tile", ["row", "twice"], ["rows"], "tile"),
        helper.make_node("Sub", ["b", "rows"], ["s"], "shifted"),
        helper.make_node(
            "ConstantOfShape",
            ["size"],
            ["mask"],
            "fill",
            value=numpy_helper.from_array(np.array([2.0], np.float32)),
        ),
        helper.make_node("Mul", ["s", "mask"], ["y"], "masked"),
    ]
    sizes = [
        numpy_helper.from_array(np.array(v), n)
        for n, v in (("twice", [8, 1]), ("size", [8, 16]))
    ]
    coverage = octavo.quantize_model(
        model(nodes, [held("w", 16, 32), held("row", 1, 16), *sizes], 16),
        "int8-dynamic",
        batches(),
    ).coverage
    assert coverage.total == 16 * 32 + 16
    assert {row.weight: row.is_float for row in coverage.rows} == {
        "w": False,
        "row": True,
    }
