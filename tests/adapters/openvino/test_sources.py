"""Models as they come: float16 IR, state, guarded attention, grouped weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino as ov
import openvino.opset13 as ops

from octavo.adapters.openvino import OpenVinoConfig
from octavo.adapters.openvino.adapter import OpenVinoAdapter
from octavo.plugin import Recipe
from tests.adapters.onnx import models

ADAPTER = OpenVinoAdapter(OpenVinoConfig(threads=1))
FLOAT = Recipe(backend="openvino")


def as_openvino(proto: Any) -> ov.Model:
    return ov.Core().read_model(proto.SerializeToString(), b"")


def named(shape: list[int], name: str) -> Any:
    made = ops.parameter(shape, np.float32)
    made.output(0).set_names({name})
    return made


def test_what_came_in_halves_is_kept_in_halves(tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    model = as_openvino(models.transformer_block())
    ov.save_model(model, path, compress_to_fp16=True)
    session = ADAPTER.open(path)
    candidate = session.apply(FLOAT, {})
    (tmp_path / "saved").mkdir()
    candidate.save(tmp_path / "saved")
    held = (tmp_path / "saved" / "model.bin").stat().st_size
    assert held < 1.2 * path.with_suffix(".bin").stat().st_size
    (batch, *_) = models.tokens()
    (got,), (expected,) = candidate.run(batch), session.reference().run(batch)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_names_do_not_depend_on_what_was_opened_before() -> None:
    first = ADAPTER.open(as_openvino(models.transformer_block())).describe()
    as_openvino(models.convolutional())
    again = ADAPTER.open(as_openvino(models.transformer_block())).describe()
    assert first == again
    assert {"embed", "q", "scores", "out", "down"} <= set(first.by_name)


def test_state_belongs_to_one_batch() -> None:
    x = named([-1, 4], "x")
    total = ops.reduce_sum(x, ops.constant(np.array([0])), True)
    kept = ops.read_value(ops.constant(np.zeros((1, 4), np.float32)), "state")
    grown = ops.add(kept, total)
    model = ov.Model([grown.output(0)], [ops.assign(grown, "state")], [x], "counting")
    for candidate in (
        ADAPTER.open(model).reference(),
        ADAPTER.open(model).apply(FLOAT, {}),
    ):
        for _ in range(2):
            (got,) = candidate.run((np.ones((3, 4), np.float32),))
            np.testing.assert_array_equal(got, np.full((1, 4), 3.0))


def guarded() -> ov.Model:
    """Attention over two heads, with scores masked by -inf and a test for NaN."""
    q, k, v = (named([1, 2, 5, 8], name) for name in "qkv")
    mask = named([1, 1, 5, 5], "mask")
    scores = ops.add(ops.matmul(q, k, False, True), mask)
    p = ops.softmax(scores, -1)
    zero = ops.constant(np.float32(0))
    safe = ops.select(ops.is_nan(p), zero, p)
    return ov.Model([ops.matmul(safe, v, False, False).output(0)], [q, k, v, mask], "")


def test_a_guarded_softmax_is_the_same_function_without_the_guard() -> None:
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(1, 2, 5, 8)).astype(np.float32) for _ in "qkv")
    mask = np.zeros((1, 1, 5, 5), np.float32)
    mask[..., 3:] = -np.inf
    mask[:, :, 2] = -np.inf  # a row that sees nothing
    candidate = ADAPTER.open(guarded()).apply(FLOAT, {})
    kinds = {node.get_type_name() for node in candidate.model.get_ordered_ops()}
    assert "IsNaN" not in kinds
    scores = q @ k.swapaxes(2, 3) + mask
    with np.errstate(invalid="ignore"):
        e = np.exp(scores - scores.max(-1, keepdims=True))
        p = np.nan_to_num(e / e.sum(-1, keepdims=True))
    (got,) = candidate.run((q, k, v, mask))
    np.testing.assert_allclose(got, p @ v, rtol=1e-4, atol=1e-5)
    assert not got[:, :, 2].any()


def test_grouped_weights_are_stated_as_the_core_has_them() -> None:
    session = ADAPTER.open(as_openvino(models.convolutional()))
    (depthwise,) = [o for o in session.describe().ops if o.name == "depthwise"]
    assert depthwise.weight is not None
    assert depthwise.weight.shape == (8, 1, 3, 3)
    assert depthwise.attributes["groups"] == 8
    expected = models.weights(
        w1=(8, 3, 3, 3), w2=(8, 8, 3, 3), b2=(8,), w3=(8, 1, 3, 3)
    )
    np.testing.assert_array_equal(session.tensor(depthwise.weight.name), expected["w3"])


def test_a_matrix_stored_by_inputs_is_a_linear_op_too() -> None:
    random = np.random.default_rng(0)
    x, weight = named([-1, 6], "x"), random.normal(size=(6, 4)).astype(np.float32)
    made = ops.matmul(x, ops.constant(weight), False, False)
    made.set_friendly_name("fc")
    session = ADAPTER.open(ov.Model([made.output(0)], [x], ""))
    (op,) = session.describe().ops
    assert (op.type, op.out_of_reach) == ("linear", "")
    assert op.weight is not None
    np.testing.assert_array_equal(session.tensor(op.weight.name), weight.T)


def test_biases_are_no_weights() -> None:
    session = ADAPTER.open(as_openvino(models.convolutional()))
    view = session.describe()
    assert not view.unclaimed
    claimed = {op.weight.name for op in view.ops if op.weight is not None}
    assert {held.name for held in session.census()} == claimed


def test_a_plain_load_takes_up_how_the_cache_is_held(tmp_path: Path) -> None:
    adapter = OpenVinoAdapter(OpenVinoConfig(kv_cache="uint8"))
    session = adapter.open(as_openvino(models.transformer_block()))
    session.apply(FLOAT, {}).save(tmp_path)
    for held, wanted in (("uint8", "u8"), ("float16", "f16")):
        adapter = OpenVinoAdapter(OpenVinoConfig(kv_cache=held))  # type: ignore[arg-type]
        adapter.open(tmp_path / "model.xml").apply(FLOAT, {}).save(tmp_path)
        compiled = ov.Core().compile_model(tmp_path / "model.xml", "CPU")
        found = compiled.get_property("KV_CACHE_PRECISION")
        assert found.get_type_name() == wanted


def test_a_sum_that_no_convolution_takes_in_stays_float() -> None:
    random = np.random.default_rng(0)

    def convolved(value: Any) -> Any:
        weight = ops.constant(random.normal(size=(4, 4, 3, 3)).astype(np.float32))
        return ops.convolution(value, weight, [1, 1], [1, 1], [1, 1], [1, 1])

    x = named([1, 4, 8, 8], "x")
    first = convolved(x)
    fused, lone = ops.add(first, convolved(first)), ops.add(first, ops.sigmoid(first))
    fused.set_friendly_name("fused")
    lone.set_friendly_name("lone")
    ends = [convolved(fused).output(0), convolved(lone).output(0)]
    view = ADAPTER.open(ov.Model(ends, [x], "")).describe()
    assert not view.by_name["fused"].out_of_reach
    assert "no convolution" in view.by_name["lone"].out_of_reach
