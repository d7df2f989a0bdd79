"""What integer kernels compute, against LiteRT's 8-bit specification in plain NumPy.

https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from octavo.adapters.litert.session import LitertSession
from octavo.core.authoring.reference import forward
from octavo.plugin import OpScheme, QuantSpec
from tests.adapters.litert.builder import SAME, VALID, Builder
from tests.adapters.litert.running import (
    FIXED,
    PLAIN,
    STATIC,
    W8,
    File,
    opened,
    quantized,
)

RNG = np.random.default_rng(0)


def _random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def _codes(x: np.ndarray, scale: float, zero: int) -> np.ndarray:
    return np.clip(np.rint(x / scale) + zero, -128, 127)


def _matrix_product(file: File, code: str, x: np.ndarray) -> np.ndarray:
    """Return what a fully connected operator must give, in whole numbers throughout."""
    node = file.node(code)
    given, weight, bias = (file.held(i) for i in node.inputs)
    result = file.held(node.outputs[0])
    assert weight.array is not None and bias.array is not None
    assert not weight.zero.any() and not bias.zero.any()
    np.testing.assert_allclose(bias.scale, given.scale * weight.scale, rtol=1e-6)
    codes = _codes(x, given.scale[0], given.zero[0]) - given.zero[0]
    sums = codes @ weight.array.T.astype(np.float64) + bias.array
    factor = given.scale.astype(np.float64) * weight.scale / result.scale
    written = np.clip(np.rint(sums * factor) + result.zero, -128, 127)
    return (written - result.zero) * result.scale


def _one_dense(weight: np.ndarray, bias: np.ndarray, act: int = 0) -> bytes:
    b = Builder()
    x = b.input((-1, weight.shape[1]))
    return b.bytes(b.dense(x, weight, bias, "fc", act))


def test_a_linear_op_is_whole_numbers_throughout() -> None:
    candidate = quantized(
        opened(_one_dense(_random(8, 24), _random(8))), {"fc": STATIC}
    )
    x = _random(33, 24)
    (got,) = candidate.run((x,))
    wanted = _matrix_product(File(candidate.model), "FULLY_CONNECTED", x)
    step = 8 / 255
    # A tie may go the other way in the kernel's own multiplication.
    assert np.abs(got - wanted).max() <= 1.01 * step
    assert (np.abs(got - wanted) > step / 2).mean() < 0.01


def test_products_of_the_largest_codes_do_not_saturate() -> None:
    """Two products of such codes are 2 * 255 * 127 > 2**15.

    A kernel that added them in 16 bits would lose half of the sum. XNNPACK and the built-in ones
    widen first, so that weights keep all of their 8 bits on processors without VNNI too.
    """
    weight = np.ones((3, 64), np.float32)
    weight[1] = -1.0
    weight[2, ::2] = -1.0
    model = _one_dense(weight, np.zeros(3, np.float32))
    candidate = quantized(opened(model), {"fc": STATIC}, -64.0, 64.0)
    file = File(candidate.model)
    given = file.held(file.node("FULLY_CONNECTED").inputs[0])
    # As far from the zero point as a code can be.
    x = np.full((2, 64), 127 - given.zero[0], np.float32) * given.scale[0] * 0.0156
    wanted = _matrix_product(file, "FULLY_CONNECTED", x)
    np.testing.assert_allclose(candidate.run((x,))[0], wanted, atol=0.51)
    largest = np.full((1, 64), 1000.0, np.float32)
    np.testing.assert_allclose(
        candidate.run((largest,))[0], [[63.7, -64.3, 0]], atol=0.6
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [SAME, VALID])
@pytest.mark.parametrize("kind", ["conv", "grouped", "depthwise", "multiplied"])
def test_layouts_are_the_cores(kind: str, padding: int, stride: int) -> None:
    """What ``tensor``, ``observe`` and the attributes say is what the operator computes."""
    b = Builder()
    x = b.input((2, 7, 6, 4))
    bias = _random(8) if kind != "depthwise" else _random(4)
    shape = {"conv": (8, 3, 2, 4), "grouped": (8, 3, 2, 2), "depthwise": (1, 3, 2, 4)}
    weight = _random(*shape.get(kind, (1, 3, 2, 8)))
    layer = b.conv if kind in ("conv", "grouped") else b.depthwise
    session = opened(b.bytes(layer(x, weight, bias, "y", 0, stride, padding)))
    op = session.describe().ops[0]
    seen: dict[str, np.ndarray] = {}
    given = _random(2, 7, 6, 4)
    session.observe([(given,)], [*op.inputs, *op.outputs], seen.__setitem__)
    assert op.weight is not None
    tensor = session.tensor(op.weight.name).astype(np.float64)
    wanted = forward(op, [seen[op.inputs[0]]], tensor, bias)
    (got,) = session.reference().run((given,))
    assert wanted is not None
    np.testing.assert_allclose(got.transpose(0, 3, 1, 2), wanted, atol=1e-4)
    np.testing.assert_array_equal(seen["y"], got.transpose(0, 3, 1, 2))


def _behind_convolution(code: str, options: str = "", **fields: float) -> bytes:
    """Return an operator behind a convolution that hands its input on."""
    b = Builder()
    x = b.input((1, 5, 4, 8))
    identity = np.eye(8, dtype=np.float32).reshape(8, 1, 1, 8)
    y = b.conv(x, identity, np.zeros(8, np.float32), "same")
    return b.bytes(b.op(code, [y], (1, 5, 4, 8), "y", options, **fields))


_UNARY = {
    "LOGISTIC": (lambda x: 1 / (1 + np.exp(-x)), 2.0**-8, -128),
    "TANH": (np.tanh, 2.0**-7, 0),
    "SOFTMAX": (lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), 2.0**-8, -128),
}


@pytest.mark.parametrize("code", sorted(_UNARY))
def test_results_of_a_fixed_scale(code: str) -> None:
    """Logistic, tanh and softmax write codes of the scale that the specification fixes."""
    function, scale, zero = _UNARY[code]
    fields = ("SoftmaxOptions", {"beta": 1.0}) if code == "SOFTMAX" else ("", {})
    session = opened(_behind_convolution(code, fields[0], **fields[1]))
    candidate = quantized(session, {"same": STATIC, "y": FIXED})
    file = File(candidate.model)
    held = file.held(file.node(code).outputs[0])
    assert (held.scale[0], held.zero[0]) == (scale, zero)
    x = _random(1, 5, 4, 8)
    wanted = _codes(function(np.rint(x * 255 / 8) * 8 / 255), scale, zero)
    got = candidate.run((x,))[0] / scale + zero
    # Tables and fixed-point exponentials are a code off here and there.
    assert np.abs(got - wanted).max() <= 2
    assert (np.abs(got - wanted) > 0.5).mean() < 0.2


_CARRIED = {
    "RESHAPE": ([(1, 20, 8)], lambda x: x.reshape(1, 20, 8)),
    "TRANSPOSE": ([(1, 4, 5, 8), (0, 2, 1, 3)], lambda x: x.transpose(0, 2, 1, 3)),
    "EXPAND_DIMS": ([(1, 1, 5, 4, 8), 1], lambda x: x[:, None]),
    "TILE": ([(1, 5, 8, 8), (1, 1, 2, 1)], lambda x: np.tile(x, (1, 1, 2, 1))),
    "SLICE": (
        [(1, 3, 4, 8), (0, 1, 0, 0), (1, 3, 4, 8)],
        lambda x: x[:, 1:4],
    ),
    "PAD": (
        [(1, 7, 4, 8), ((0, 0), (1, 1), (0, 0), (0, 0))],
        lambda x: np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))),
    ),
    "RELU": ([(1, 5, 4, 8)], lambda x: np.maximum(x, 0)),
}


@pytest.mark.parametrize("code", sorted(_CARRIED))
def test_carriers_move_codes(code: str) -> None:
    """What moves values moves codes where they come as such, and changes none."""
    (shape, *held), function = _CARRIED[code]
    b = Builder()
    x = b.input((1, 5, 4, 8))
    identity = np.eye(8, dtype=np.float32).reshape(8, 1, 1, 8)
    y = b.conv(x, identity, np.zeros(8, np.float32), "same")
    constants = [b.const(np.array(array, np.int32)) for array in held]
    if code == "RESHAPE":
        y = b.reshape(y, shape, "y")
    else:
        y = b.op(code, [y, *constants], shape, "y")
    session = opened(b.bytes(y))
    candidate = quantized(session, {"same": STATIC})
    assert candidate.ledger["y"].realization == "codes"
    assert File(candidate.model).codes == ["QUANTIZE", "CONV_2D", code, "DEQUANTIZE"]
    given = _random(1, 5, 4, 8)
    before = quantized(_of_values(), {"same": STATIC}).run((given,))[0]
    np.testing.assert_array_equal(candidate.run((given,))[0], function(before))


def _of_values() -> LitertSession:
    """Return the model that ends with the convolution."""
    b = Builder()
    x = b.input((1, 5, 4, 8))
    identity = np.eye(8, dtype=np.float32).reshape(8, 1, 1, 8)
    return opened(b.bytes(b.conv(x, identity, np.zeros(8, np.float32), "same")))


def test_a_mean_of_codes_and_a_pool_that_keeps_its_scale() -> None:
    b = Builder()
    x = b.input((1, 6, 6, 8))
    identity = np.eye(8, dtype=np.float32).reshape(8, 1, 1, 8)
    y = b.pool(
        "AVERAGE", b.conv(x, identity, np.zeros(8, np.float32), "same"), 2, "pool"
    )
    session = opened(b.bytes(b.mean(y, "gap")))
    schemes = {"same": STATIC, "pool": FIXED, "gap": PLAIN}
    candidate = quantized(session, schemes)
    file = File(candidate.model)
    node = file.node("AVERAGE_POOL_2D")
    given, result = file.held(node.inputs[0]), file.held(node.outputs[0])
    assert (given.scale, given.zero) == (result.scale, result.zero)
    x_given = _random(1, 6, 6, 8)
    (got,) = candidate.run((x_given,))
    np.testing.assert_allclose(got, x_given.mean((1, 2)), atol=2.5 * 8 / 255)


def test_scales_found_at_run_time_are_those_of_rows_and_of_images() -> None:
    """XNNPACK rounds each row of a linear op's input, each image of a convolution's, over its own
    range; no other reading of the numbers comes as near."""
    row = QuantSpec(dtype="int8", symmetric=False, granularity="token")
    weight = _random(8, 24)
    candidate = quantized(
        opened(_one_dense(weight, np.zeros(8, np.float32))),
        {"fc": OpScheme(mode="dynamic", weight=W8, input=row)},
    )
    x = _random(5, 24) * np.array([[1], [10], [100], [0.1], [1]], np.float32)
    held = File(candidate.model).held(
        File(candidate.model).graph.operators[0].inputs[1]
    )
    assert held.array is not None
    numbers = held.array * held.scale[:, None]
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    scale = (np.maximum(high, 0) - np.minimum(low, 0)) / 255
    zero = np.rint(-128 - np.minimum(low, 0) / scale)
    rounded = (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale
    (got,) = candidate.run((x,))
    assert np.linalg.norm(got - rounded @ numbers.T) < 1e-5 * np.linalg.norm(got)
    assert np.linalg.norm(got - x @ numbers.T) > 1e-4 * np.linalg.norm(got)


def test_a_constant_operand_is_rounded_over_its_own_range() -> None:
    b = Builder()
    x = b.input((1, 5, 4, 8))
    identity = np.eye(8, dtype=np.float32).reshape(8, 1, 1, 8)
    y = b.conv(x, identity, np.zeros(8, np.float32), "same")
    gain = np.linspace(0.5, 1.5, 8, dtype=np.float32)
    y = b.op("MUL", [y, b.const(gain)], (1, 5, 4, 8), "y", "MulOptions")
    candidate = quantized(opened(b.bytes(y)), {"same": STATIC, "y": PLAIN}, -6.0, 6.0)
    assert File(candidate.model).codes == ["QUANTIZE", "CONV_2D", "MUL", "DEQUANTIZE"]
    given = _random(1, 5, 4, 8)
    np.testing.assert_allclose(candidate.run((given,))[0], given * gain, atol=0.1)


def test_rows_of_a_table_are_decoded_exactly() -> None:
    b = Builder()
    table = _random(30, 6) * np.geomspace(1, 1000, 30, dtype=np.float32)[:, None]
    ids = b.input((2, 3), "ids", "int32")
    y = b.op("GATHER", [b.const(table, "table"), ids], (2, 3, 6), "y", "GatherOptions")
    session = opened(b.bytes(y))
    candidate = quantized(session, {"y": OpScheme(mode="weight_only", weight=W8)})
    given = np.array([[0, 29, 7], [1, 1, 15]], np.int32)
    scale = np.abs(table).max(1, keepdims=True) / 127
    wanted = (np.rint(table / scale) * scale)[given]
    np.testing.assert_allclose(candidate.run((given,))[0], wanted, rtol=1e-5)
