"""The NumPy backend's census against a count by hand."""

import numpy as np

import octavo
from octavo.adapters.numpy.graph import Builder

RANDOM = np.random.default_rng(0)


def array(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def test_constants_that_no_op_claims_are_rows_and_what_reaches_no_output_is_not() -> (
    None
):
    b = Builder()
    x = b.input("x", (None, 16))
    hidden = b.Relu(b.Gemm(x, array(16, 32), array(32), name="hidden"))
    shifted = b.Add(hidden, b.constant(array(1, 32), "shift"))
    b.Gemm(shifted, b.constant(array(32, 99), "never"), array(99), name="nowhere")
    graph = b.graph(b.Gemm(shifted, array(32, 4), array(4), name="output"))
    quantized = octavo.quantize_model(graph, "int8-dynamic", [(array(8, 16),)])
    coverage = quantized.coverage
    assert coverage.total == 16 * 32 + 32 + 32 * 4
    assert coverage.quantized == 16 * 32 + 32 * 4
    assert [(row.weight, row.op) for row in coverage.rows if row.is_float] == [
        ("shift", None)
    ]
    assert coverage.summary() in quantized.notes


def test_recurrent_weights_are_told_of() -> None:
    b = Builder()
    x = b.input("x", (5, None, 8))
    outputs = b.node(
        "LSTM",
        x,
        array(1, 24, 8),
        array(1, 24, 6),
        array(1, 48),
        name="rnn",
        outputs=3,
        hidden_size=6,
    )
    last = b.Squeeze(outputs[1], b.constant(np.array([0]), "axes"))
    graph = b.graph(b.Gemm(last, array(6, 4), array(4), name="output"))
    coverage = octavo.quantize_model(
        graph, "int8-dynamic", [(array(5, 2, 8),)]
    ).coverage
    assert coverage.total == 24 * 8 + 24 * 6 + 48 + 6 * 4
    assert coverage.quantized == 6 * 4
    assert any("bias" in row.reason for row in coverage.rows)


def test_one_weight_in_two_layouts_is_one_weight_and_what_is_computed_from_none_is_none() -> (
    None
):
    b = Builder()
    x, w = b.input("x", (None, 16)), b.constant(array(16, 32), "w")
    hidden = b.Gemm(x, w, array(32), name="first")
    back = b.Gemm(
        hidden, b.Transpose(w, perm=(1, 0), name="turn"), array(16), name="second"
    )
    rows = b.Tile(
        b.constant(array(1, 16), "row"),
        b.constant(np.array([8, 1]), "twice"),
        name="tile",
    )
    ones = b.Expand(
        b.constant(np.float32(1), "one"),
        b.constant(np.array([8, 16]), "size"),
        name="mask",
    )
    graph = b.graph(b.Mul(b.Sub(back, rows), ones))
    coverage = octavo.quantize_model(graph, "int8-dynamic", [(array(8, 16),)]).coverage
    assert coverage.total == 16 * 32 + 16
    assert {row.weight: row.is_float for row in coverage.rows} == {
        "w": False,
        "row": True,
    }
