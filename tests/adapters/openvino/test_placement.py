"""Where codes are made and read in a transformer: the compiled graph shows what fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino as ov
import openvino.opset13 as ops

from octavo.adapters.openvino import OpenVinoConfig
from octavo.adapters.openvino.adapter import OpenVinoAdapter
from octavo.plugin import OpParameters, OpScheme, QuantSpec, one_op_parameters

WIDTH, HEADS, HIDDEN = 32, 2, 64
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
STATIC = OpScheme(
    mode="static",
    weight=QuantSpec(dtype="int8", granularity="channel"),
    input=QuantSpec(dtype="uint8", symmetric=False),
)


def linear(x: Any, outputs: int, name: str) -> Any:
    """Return x W + b, as exporters write it: features first in the weight."""
    seed = np.frombuffer(name.encode(), np.uint8)
    random = np.random.default_rng(seed)
    features = x.get_output_partial_shape(0)[2].get_length()
    weight = random.normal(size=(features, outputs)) / np.sqrt(features)
    product = ops.matmul(x, ops.constant(weight.astype(np.float32)), False, False)
    product.set_friendly_name(name)
    bias = random.normal(size=outputs).astype(np.float32)
    return ops.add(product, ops.constant(bias))


def heads(x: Any) -> Any:
    shape = ops.constant(np.array([0, 0, HEADS, WIDTH // HEADS]))
    return ops.transpose(
        ops.reshape(x, shape, True), ops.constant(np.array([0, 2, 1, 3]))
    )


@cache
def block() -> ov.Model:
    """Return attention with a guard against rows that are masked throughout, and a GELU network.

    The guard is what PyTorch's exporter writes: Select(IsNaN(p), 0, p).
    """
    x = ops.parameter([-1, -1, WIDTH], np.float32, name="x")
    mask = ops.parameter([-1, 1, 1, -1], np.float32, name="mask")
    for port, name in ((x, "x"), (mask, "mask")):
        port.output(0).set_names({name})
    q, k, v = (heads(linear(x, WIDTH, name)) for name in ("query", "key", "value"))
    scores = ops.matmul(ops.multiply(q, ops.constant(np.float32(0.25))), k, False, True)
    softmax = ops.softmax(ops.add(scores, mask), 3)
    guarded = ops.select(ops.is_nan(softmax), ops.constant(np.float32(0)), softmax)
    mixed = ops.transpose(
        ops.matmul(guarded, v, False, False), ops.constant(np.array([0, 2, 1, 3]))
    )
    joined = ops.reshape(mixed, ops.constant(np.array([0, 0, WIDTH])), True)
    total = ops.add(linear(joined, WIDTH, "out"), x)
    last = ops.constant(np.array([-1]))
    normed = ops.mvn(total, last, True, 1e-5, "inside_sqrt")
    inner = ops.gelu(linear(normed, HIDDEN, "up"), "erf")
    made = ops.add(linear(inner, WIDTH, "down"), normed)
    made.output(0).set_names({"y"})
    return ov.Model([made.output(0)], [x, mask], "block")


def fed() -> dict[str, np.ndarray]:
    """Return two sentences of 5 tokens; the second has padding alone."""
    x = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)
    mask = np.zeros((2, 1, 1, 5), np.float32)
    mask[0, ..., 3:] = -np.inf
    mask[1] = -np.inf
    return {"x": x, "mask": mask}


def written(names: Sequence[str], *, convolves: bool) -> ov.Model:
    """Return the block with these linear ops in 8 bits."""
    session = OpenVinoAdapter(OpenVinoConfig(threads=1)).open(block())
    found: dict[str, OpParameters] = {}
    for op in session.describe().ops:
        if op.name in names:
            found[op.name] = one_op_parameters(
                op, STATIC, session.tensor, -4.0, 4.0, reduced=True
            )
    assert len(found) == len(names)
    model: ov.Model = session.emitted(found, convolves=convolves)
    return model


LINEAR = ("query", "key", "value", "out", "up", "down")


@cache
def compiled(names: tuple[str, ...], convolves: bool) -> Any:
    model = written(names, convolves=convolves)
    return ov.Core().compile_model(model, "CPU", SETTINGS)


def graph(names: tuple[str, ...], convolves: bool) -> list[Mapping[str, str]]:
    nodes = compiled(names, convolves).get_runtime_model().get_ordered_ops()
    shown = [
        {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
        for node in nodes
    ]
    return [info for info in shown if info["layerType"] != "Const"]


def run(model: Any) -> np.ndarray:
    return np.asarray(next(iter(model(fed()).values())))


def test_a_masked_row_stays_0_without_a_test_of_every_score() -> None:
    plain = ov.Core().compile_model(block(), "CPU", SETTINGS)
    np.testing.assert_allclose(run(compiled((), False)), run(plain), atol=1e-5)
    layers = {info["layerType"] for info in graph((), False)}
    assert not layers & {"IsNaN", "Select"}


@pytest.mark.parametrize("convolves", [True, False])
def test_bias_gelu_and_the_next_codes_are_the_tail_of_a_product(
    convolves: bool,
) -> None:
    nodes = graph(LINEAR, convolves)
    kind = "Convolution" if convolves else "FullyConnected"
    products = [info for info in nodes if info["layerType"].startswith(kind)]
    assert len(products) == len(LINEAR)
    assert {info["runtimePrecision"] for info in products} <= {"u8", "i8"}
    layers = [info["layerType"] for info in nodes]
    assert "Gelu" not in layers
    (up,) = [info for info in products if "up" in info["originalLayersNames"]]
    assert "Gelu" in up["originalLayersNames"]
    assert up["outputPrecisions"] in ("u8", "i8")


def test_two_products_in_a_row_stay_in_one_layout() -> None:
    def turned(names: tuple[str, ...]) -> int:
        model = written(names, convolves=True)
        kinds = [node.get_type_name() for node in model.get_ordered_ops()]
        return kinds.count("Transpose")

    # Each alone is turned on its way in and out; the pair is not turned between.
    assert turned(("up", "down")) - turned(()) == 2


def test_attention_is_one_kernel_where_its_float_twin_is() -> None:
    def softmaxes(names: tuple[str, ...]) -> int:
        nodes = graph(names, True)
        return sum(info["layerType"] == "Softmax" for info in nodes)

    assert softmaxes(LINEAR) == softmaxes(())


@pytest.mark.parametrize("convolves", [True, False])
def test_either_form_computes_the_rounded_block(convolves: bool) -> None:
    plain = run(ov.Core().compile_model(block(), "CPU", SETTINGS))
    got = run(compiled(LINEAR, convolves))
    difference = np.abs(got - plain).mean() / np.abs(plain).mean()
    # Codes of 7 and 8 bits over a range of 8: no product is lost, and none is exact.
    assert 1e-4 < difference < 0.1
    other = run(compiled(LINEAR, not convolves))
    assert np.abs(got - other).mean() < 0.02 * np.abs(plain).mean()
