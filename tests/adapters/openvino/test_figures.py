"""Time and bytes of each op, against OpenVINO's own files and a clock."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("openvino")

import openvino as ov

from octavo.adapters.openvino import OpenVinoConfig
from octavo.adapters.openvino.adapter import OpenVinoAdapter
from octavo.core.values.layers import REST
from tests.adapters.onnx import models
from tests.helpers import as_opened, preset_candidate

PRODUCTS = ("conv", "linear")


def opened(proto: onnx.ModelProto) -> Any:
    model = ov.Core().read_model(proto.SerializeToString(), b"")
    return as_opened(OpenVinoAdapter(OpenVinoConfig(threads=1)).open(model))


def both(model: Any, preset: str, batch: Any) -> tuple[Any, Any]:
    return model.session.reference(), preset_candidate(model, preset, [batch])


@pytest.mark.parametrize("preset", ["int8-static", "int8-weight-only"])
@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_every_byte_of_the_weights_is_counted_once(
    kind: str, preset: str, tmp_path: Path
) -> None:
    if kind == "convolutional":
        proto, batch = models.convolutional(), models.images()[0]
    else:
        proto, batch = models.transformer_block(), models.tokens()[0]
    model = opened(proto)
    for number, candidate in enumerate(both(model, preset, batch)):
        found = candidate.bytes_by_op()
        assert set(found) <= {*model.view.by_name, REST}
        folder = tmp_path / str(number)
        folder.mkdir()
        candidate.save(folder)
        assert sum(found.values()) == (folder / "model.bin").stat().st_size
        assert pickle.loads(pickle.dumps(candidate)).bytes_by_op() == found


def test_bytes_of_an_op_are_its_codes_scales_and_bias() -> None:
    model = opened(models.convolutional())
    in_float, quantized = both(model, "int8-static", models.images()[0])
    for name in ("conv1", "conv2", "depthwise", "pointwise"):
        op = model.view.by_name[name]
        biases = 4 * op.weight.shape[0] if op.bias else 0
        # The model as it was given has the four vectors of a batch norm.
        norm = 4 * biases if name == "conv1" else biases
        # And groups as an axis of the weight's own, to a shape that is a constant too.
        shapes = 64 if name == "depthwise" else 0
        stated = 4 * op.weight.size + norm
        assert stated <= in_float.bytes_by_op()[name] <= stated + shapes
        scales = 4 * op.weight.shape[0]
        least = op.weight.size + biases + scales
        # The four ends of the rounding in front of it, of four bytes each.
        assert least <= quantized.bytes_by_op()[name] <= least + 16


@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_the_times_of_ops_are_the_time_of_a_call(kind: str) -> None:
    if kind == "convolutional":
        proto, batch = models.convolutional(), models.images()[0]
    else:
        proto, batch = models.transformer_block(), models.tokens()[0]
    model = opened(proto)
    products = {op.name for op in model.view.ops if op.type in PRODUCTS}
    for candidate in both(model, "int8-static", batch):
        candidate.run(batch)
        start = time.perf_counter()
        found = candidate.profile(batch, 0.05)
        spent = 1e3 * (time.perf_counter() - start)
        assert products <= set(found) <= {*model.view.by_name, REST}
        assert all(found[name] > 0 for name in products)
        assert 0 < sum(found.values()) < spent


def test_a_larger_product_takes_the_larger_share() -> None:
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w1"], ["h"], "large"),
        onnx.helper.make_node("Relu", ["h"], ["r"], "relu"),
        onnx.helper.make_node("MatMul", ["r", "w2"], ["y"], "y"),
    ]
    tensors = models.weights(w1=(256, 1024), w2=(1024, 8))
    proto = models.build(nodes, tensors, {"x": ["n", 256]}, {"y": ["n", 8]})
    model = opened(proto)
    batch = (np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32),)
    for candidate in both(model, "int8-static", batch):
        found = candidate.profile(batch, 0.05)
        # 128 times the products.
        assert found["large"] > 3 * found["y"]
        # Rounding and turning count with the products: hardly anything is left over.
        assert found[REST] < 0.5 * sum(found.values())


def test_what_was_loaded_does_not_know_its_ops(tmp_path: Path) -> None:
    model = opened(models.convolutional())
    candidate = preset_candidate(model, "int8-static", [models.images()[0]])
    candidate.save(tmp_path)
    loaded = OpenVinoAdapter(OpenVinoConfig(threads=1)).load(tmp_path)
    assert loaded.bytes_by_op() == {}
    assert loaded.profile(models.images()[0], 0.01) == {}
