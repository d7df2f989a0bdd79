"""CPUs without VNNI add 8-bit products in 16 bits: models are right on them too, and on
all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import octavo
from octavo.adapters.onnx import candidate, offers
from octavo.adapters.onnx.kernels import probing, saturation
from octavo.core.values.ledger import REDUCED

Build = Callable[[], onnx.ModelProto]
RANDOM = np.random.default_rng(0)


def loud(*shape: int) -> np.ndarray:
    """Return weights of one sign near one magnitude: every product lies at the end of its range."""
    return (RANDOM.random(shape) * 0.2 + 0.9).astype(np.float32)


def conv_and_products() -> onnx.ModelProto:
    nodes = [
        helper.make_node(
            "Conv", ["x", "k", "kb"], ["a"], name="conv", pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "gb"], ["h"], name="gemm", transB=1),
        helper.make_node("MatMul", ["h", "m"], ["y"], name="product"),
    ]
    held = {
        "k": loud(32, 3, 3, 3),
        "kb": loud(32),
        "g": loud(64, 32 * 36),
        "gb": loud(64),
        "m": loud(64, 8),
    }
    return _model(nodes, [("x", ["n", 3, 6, 6])], held, 2)


def recurrent() -> onnx.ModelProto:
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "b"], ["y"], name="lstm", hidden_size=16
    )
    held = {
        "w": loud(1, 64, 24) * 0.02,
        "r": loud(1, 64, 16) * 0.02,
        "b": loud(1, 128) * 0.1,
    }
    return _model([node], [("x", ["t", "n", 24])], held, 4)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, list[int | str]]],
    held: dict[str, np.ndarray],
    rank: int,
) -> onnx.ModelProto:
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in inputs
    ]
    axes = [f"y{axis}" for axis in range(rank)]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, axes)
    tensors = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "g", given, [result], tensors)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )


CASES = [
    (conv_and_products, "int8-static", (4, 3, 6, 6)),
    (conv_and_products, "int8-dynamic", (4, 3, 6, 6)),
    (recurrent, "int8-dynamic", (5, 4, 24)),
]


def _float(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(["y"], {"x": x})
    return np.asarray(y)


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize(("build", "scheme", "shape"), CASES)
def test_products_at_the_end_of_their_range_are_right(
    build: Build, scheme: str, shape: tuple[int, ...]
) -> None:
    model = build()
    batches = [{"x": RANDOM.random(shape).astype(np.float32)} for _ in range(4)]
    made = octavo.quantize_model(model, scheme, calibration=batches)
    assert _relative(made.model(batches[0]), _float(model, batches[0]["x"])) < 0.02
    assert any(not line.applied.is_float for line in made.ledger.values())
    reduced = [
        REDUCED in line.reason
        for line in made.ledger.values()
        if not line.applied.is_float
    ]
    reached = saturation.saturates(("CPUExecutionProvider",))
    assert all(reduced) if reached else not any(reduced)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize(("build", "scheme", "shape"), CASES)
def test_a_model_of_another_machine_is_loaded_without_saturating(
    build: Build,
    scheme: str,
    shape: tuple[int, ...],
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build()
    batches = [{"x": RANDOM.random(shape).astype(np.float32)} for _ in range(4)]
    with monkeypatch.context() as elsewhere:
        # A CPU with VNNI: whole bytes are stored.
        elsewhere.setattr(probing, "saturates", lambda providers: "")
        offers._offers.cache_clear()
        try:
            rules = [
                {
                    "mode": scheme.removeprefix("int8-"),
                    "weight": {"dtype": "int8", "reduce_range": False},
                }
            ]
            settings = {"rules": rules, "backends": [{"kind": "onnx", "form": form}]}
            made = octavo.quantize_model(model, settings, calibration=batches)
            made.save(tmp_path / "result")
        finally:
            offers._offers.cache_clear()
    stored = onnx.load(tmp_path / "result" / "model" / "model.onnx").graph.initializer
    signed = [
        numpy_helper.to_array(t)
        for t in stored
        if t.data_type == TensorProto.INT8 and len(t.dims) > 1
    ]
    assert (
        signed and max(int(np.abs(codes.astype(int)).max()) for codes in signed) == 127
    )
    # Whatever this CPU is, it is taken for one whose kernels saturate.
    monkeypatch.setattr(candidate, "saturates", lambda providers: saturation.REASON)
    loaded = octavo.load(tmp_path / "result")
    assert _relative(loaded(batches[0]), _float(model, batches[0]["x"])) < 0.02
    held = [
        value.const_value
        for value in loaded.graph.graph.initializers.values()
        if value.uses()
    ]
    wide = [
        t for t in held if t is not None and t.dtype.name == "INT8" and len(t.shape) > 1
    ]
    assert not wide
