"""The integer operators against ONNX Runtime's kernels, bit by bit, on random cases."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from octavo.adapters.numpy.files.onnx_reader import from_onnx
from octavo.adapters.numpy.run.kernels import Kernels
from octavo.adapters.numpy.run.program import Program

OPSET = 21
CASES = 25


def both(
    op: str,
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
    output: np.dtype[Any],
    **attributes: Any,
) -> tuple[Any, Any]:
    """Run one operator here and in ONNX Runtime; the names in order are the operator's inputs."""
    order = sorted({**inputs, **constants})
    node = helper.make_node(op, order, ["y"], **attributes)
    info = [
        helper.make_tensor_value_info(
            n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
        )
        for n, a in inputs.items()
    ]
    held = [
        helper.make_tensor(
            n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape, a.tobytes(), raw=True
        )
        for n, a in constants.items()
    ]
    result = helper.make_tensor_value_info(
        "y", helper.np_dtype_to_tensor_dtype(output), [None] * inputs["a"].ndim
    )
    model = helper.make_model(
        helper.make_graph([node], "g", info, [result], held),
        opset_imports=[
            helper.make_opsetid("", OPSET),
            helper.make_opsetid("com.microsoft", 1),
        ],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # Fused or reordered operators would be something else than the operator in question.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run(None, inputs)[0]
    program = Program(from_onnx(model), Kernels(1 << 18))
    return program.run([inputs[i.name] for i in program.graph.inputs])[0], expected


def codes(random: np.random.Generator, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    info = np.iinfo(kind)
    return random.integers(info.min, info.max + 1, shape).astype(kind)


def weights(
    random: np.random.Generator, shape: tuple[int, ...], kind: Any
) -> np.ndarray:
    """Return codes that every CPU multiplies right: ONNX Runtime's signed weights saturate in 16
    bits without VNNI."""
    return (
        random.integers(-64, 65, shape).astype(kind)
        if kind is np.int8
        else codes(random, shape, kind)
    )


def zero(
    random: np.random.Generator, kind: Any, shape: tuple[int, ...] = ()
) -> np.ndarray:
    return codes(random, shape, kind)


def matmul_integer(seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    m, k, n = (int(v) for v in random.integers(1, [40, 900, 60]))
    a_kind, b_kind = (
        random.choice([np.uint8, np.int8]),
        random.choice([np.uint8, np.int8]),
    )
    stack = (2,) if seed % 3 == 0 else ()
    constants = {
        "b": weights(random, (k, n), b_kind),
        "c": zero(random, a_kind),
        "d": zero(random, b_kind, (n,) if seed % 2 else ()),
    }
    return both(
        "MatMulInteger",
        {"a": codes(random, (*stack, m, k), a_kind)},
        constants,
        np.dtype(np.int32),
    )


def qlinear_matmul(seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(100 + seed)
    m, k, n = (int(v) for v in random.integers(1, [40, 700, 60]))
    kind = random.choice([np.uint8, np.int8])
    b_kind = np.int8 if kind is np.int8 else random.choice([np.uint8, np.int8])
    channels = (n,) if seed % 2 else ()
    scale = np.float32(random.uniform(1e-3, 1e-1))
    constants = {
        "b": scale,
        "c": zero(random, kind),
        "d": weights(random, (k, n), b_kind),
        "e": random.uniform(1e-3, 1e-1, channels).astype(np.float32),
        "f": zero(random, b_kind, channels),
        "g": np.float32(random.uniform(0.5, 5) * scale * np.sqrt(k)),
        "h": zero(random, kind),
    }
    return both(
        "QLinearMatMul",
        {"a": codes(random, (m, k), kind)},
        {n: np.asarray(v) for n, v in constants.items()},
        np.dtype(kind),
    )


def _convolution(
    random: np.random.Generator, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    groups = [1, 2, 8][seed % 3]
    channels, outputs = 8 * int(random.integers(1, 6)), 8 * int(random.integers(1, 5))
    if groups == 8:
        channels = outputs = groups = 16  # depthwise
    kernel = [int(v) for v in random.integers(1, 4, 2)]
    shape = (2, channels, int(random.integers(5, 12)), int(random.integers(5, 12)))
    attributes = {
        "group": groups,
        "kernel_shape": kernel,
        "strides": [int(v) for v in random.integers(1, 3, 2)],
        "pads": [int(v) for v in random.integers(0, 2, 4)],
        "dilations": [int(v) for v in random.integers(1, 3, 2)],
    }
    return shape, (outputs, channels // groups, *kernel), attributes


def conv_integer(seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(200 + seed)
    shape, weight, attributes = _convolution(random, seed)
    # ONNX Runtime's ConvInteger takes unsigned activations; its weights may be signed.
    w_kind = random.choice([np.uint8, np.int8])
    constants = {
        "b": weights(random, weight, w_kind),
        "c": zero(random, np.uint8),
        "d": zero(random, w_kind),
    }
    return both(
        "ConvInteger",
        {"a": codes(random, shape, np.uint8)},
        constants,
        np.dtype(np.int32),
        **attributes,
    )


def qlinear_conv(seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(300 + seed)
    shape, weight, attributes = _convolution(random, seed)
    kind = random.choice([np.uint8, np.int8])
    depth = int(np.prod(weight[1:]))
    x_scale, y_scale = np.float32(0.02), np.float32(0.02 * np.sqrt(depth))
    w_scale = random.uniform(5e-3, 2e-2, (weight[0],) if seed % 2 else ()).astype(
        np.float32
    )
    constants = {
        "b": x_scale,
        "c": zero(random, kind),
        "d": weights(random, weight, np.int8),
        "e": w_scale,
        "f": np.zeros(w_scale.shape, np.int8),
        "g": y_scale,
        "h": zero(random, kind),
        "i": random.integers(-2000, 2000, weight[0]).astype(np.int32),
    }
    return both(
        "QLinearConv",
        {"a": codes(random, shape, kind)},
        {n: np.asarray(v) for n, v in constants.items()},
        np.dtype(kind),
        **attributes,
    )


@pytest.mark.parametrize(
    "case", [matmul_integer, qlinear_matmul, conv_integer], ids=lambda c: c.__name__
)
@pytest.mark.parametrize("seed", range(CASES))
def test_bit_by_bit(case: Callable[[int], tuple[Any, Any]], seed: int) -> None:
    ours, theirs = case(seed)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("seed", range(CASES))
def test_qlinear_conv_is_within_one_step(seed: int, record_property: Any) -> None:
    ours, theirs = qlinear_conv(seed)
    differences = np.abs(ours.astype(int) - theirs.astype(int))
    record_property(
        "differences", f"{int((differences > 0).sum())} of {differences.size}"
    )
    assert differences.max() <= 1
    assert (differences > 0).mean() < 1e-3


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_contributed_elementwise_operators_are_within_one_step(
    op: str, kind: Any
) -> None:
    random = np.random.default_rng(7)
    inputs = {"a": codes(random, (3, 50), kind), "d": codes(random, (3, 50), kind)}
    scales = {"b": 0.03, "e": 0.05, "g": 0.09 if op == "QLinearAdd" else 0.2}
    constants = {n: np.asarray(v, np.float32) for n, v in scales.items()} | {
        n: zero(random, kind) for n in ("c", "f", "h")
    }
    ours, theirs = both(op, inputs, constants, np.dtype(kind), domain="com.microsoft")
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
