"""LSTMs as DynamicQuantizeLSTM: close to the float operator, not worse than ONNX Runtime's own
quantizer, every input kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import octavo
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.kernels.saturation import saturates
from octavo.adapters.onnx.offers import capability
from octavo.adapters.onnx.prepare.source import read
from octavo.adapters.onnx.run.compiling import compile_model
from tests.adapters.onnx import models

STEPS, BATCH, FEATURES, HIDDEN = 6, 3, 16, 32
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, BATCH, FEATURES)).astype(np.float32)


def tagger(directions: int = 1, *, full: bool = False) -> onnx.ModelProto:
    """An LSTM whose three results are read; ``full`` gives it lengths, initial states and peepholes
    too."""
    d, g = directions, 4 * HIDDEN
    tensors = models.weights(w=(d, g, FEATURES), r=(d, g, HIDDEN), b=(d, 2 * g))
    given = ["x", "w", "r", "b"]
    inputs = {"x": [STEPS, BATCH, FEATURES]}
    if full:
        tensors |= models.weights(1, p=(d, 3 * HIDDEN)) | {
            "lengths": np.array([6, 2, 4], np.int32)
        }
        given += ["lengths", "h0", "c0", "p"]
        inputs |= {"h0": [d, BATCH, HIDDEN], "c0": [d, BATCH, HIDDEN]}
    node = helper.make_node(
        "LSTM",
        given,
        ["y", "h", "c"],
        "cell",
        hidden_size=HIDDEN,
        direction="bidirectional" if d == 2 else "forward",
        clip=3.0,
    )
    tanh = helper.make_node("Tanh", ["h"], ["t"], "tanh")
    state = [d, BATCH, HIDDEN]
    return models.build(
        [node, tanh],
        tensors,
        inputs,
        {"y": [STEPS, d, BATCH, HIDDEN], "t": state, "c": state},
    )


def error(got: list[np.ndarray], expected: list[np.ndarray]) -> float:
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for a, b in zip(got, expected, strict=True)
    )


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return compile_model(read(model), OnnxConfig()).session.run(None, feeds)


def test_the_kernel_is_found_by_running_it() -> None:
    offers = capability(OnnxConfig(threads=1), ["lstm"]).offers["lstm"]
    assert str(offers[0].scheme) == "dynamic w:int8/channel x:uint8-asym/tensor"
    assert {o.realization for o in offers if o.scheme.mode == "dynamic"} == {"kernel"}


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_is_at_least_as_close_as_onnx_runtimes_own(
    directions: int, tmp_path: Path
) -> None:
    proto = tagger(directions)
    expected = run(proto, {"x": X})
    result = octavo.quantize_model(proto, "int8-dynamic", calibration=[(X,)])
    assert result.ledger["cell"].realization == "kernel"
    assert result.ledger["cell"].reason.split("; ")[0] == "DynamicQuantizeLSTM"
    onnx.save(proto, tmp_path / "float.onnx")
    # Without VNNI both keep to seven bits, as ONNX Runtime's documentation advises.
    narrow = bool(saturates(("CPUExecutionProvider",)))
    quantize_dynamic(
        tmp_path / "float.onnx",
        tmp_path / "theirs.onnx",
        weight_type=QuantType.QInt8,
        reduce_range=narrow,
    )
    theirs = error(run(onnx.load(tmp_path / "theirs.onnx"), {"x": X}), expected)
    assert error(list(result.candidate.run((X,))), expected) <= 1.05 * theirs
    onnx.checker.check_model(result.model.model)
    assert [o.name for o in result.model.model.graph.output] == ["y", "t", "c"]
    matrices = 4 * HIDDEN * (FEATURES + HIDDEN) * directions
    held = [
        t
        for t in result.model.model.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 3
    ]
    assert sum(len(t.raw_data) for t in held) == matrices


@pytest.mark.parametrize("directions", [1, 2])
def test_lengths_states_peepholes_and_clipping_are_kept(directions: int) -> None:
    proto = tagger(directions, full=True)
    state = (directions, BATCH, HIDDEN)
    feeds = {
        "x": X,
        "h0": RNG.normal(size=state).astype(np.float32),
        "c0": RNG.normal(size=state).astype(np.float32),
    }
    result = octavo.quantize_model(proto, "int8-dynamic", calibration=[feeds])
    assert result.ledger["cell"].reason.split("; ")[0] == "DynamicQuantizeLSTM"
    assert error(list(result.candidate.run(feeds)), run(proto, feeds)) < 0.03


def test_an_lstm_is_saved_and_loaded(tmp_path: Path) -> None:
    result = octavo.quantize_model(tagger(2), "int8-dynamic", calibration=[(X,)])
    result.save(tmp_path / "out")
    loaded = octavo.load(tmp_path / "out")
    for a, b in zip(loaded(X), result.candidate.run((X,)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_that_are_computed_stay_float_with_a_reason() -> None:
    t = models.weights(w=(1, 32, 4), r=(1, 32, 8), b=(1, 64))
    nodes = [
        helper.make_node("Mul", ["w", "s"], ["v"], "scale"),
        helper.make_node("LSTM", ["x", "v", "r", "b"], ["y"], "cell", hidden_size=8),
    ]
    proto = models.build(nodes, t, {"x": [5, 2, 4], "s": [1]}, {"y": [5, 1, 2, 8]})
    feeds = {
        "x": RNG.normal(size=(5, 2, 4)).astype(np.float32),
        "s": np.ones(1, np.float32),
    }
    op = OnnxAdapter(OnnxConfig()).open(proto, feeds).describe().by_name["cell"]
    assert op.out_of_reach == "its weights are computed at run time"
