"""The conformance kit on a convolution network, linear layers and attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from ai_edge_litert import schema_py_generated as fb
from ai_edge_litert.interpreter import Interpreter

from octavo.adapters.litert import octavo_adapters
from octavo.plugin import AdapterCase, AdapterConformance, Batch, Candidate
from tests.adapters.litert import models


def _witness(candidate: Candidate, name: str) -> str:
    """Return '' where the operator that writes an op's result is given codes, in what plain LiteRT
    loads: its kernels are chosen by the types of their tensors alone."""
    model = fb.ModelT.InitFromPackedBuf(bytearray(candidate.native.model), 0)
    graph = model.subgraphs[0]
    types = [tensor.type for tensor in graph.tensors]
    integers = (fb.TensorType.INT8, fb.TensorType.INT16, fb.TensorType.INT4)
    for node in graph.operators:
        written = graph.tensors[node.outputs[0]].name.decode()
        read = [types[index] for index in node.inputs if index >= 0]
        if written.split("/int")[0] != name:
            continue
        code = model.operatorCodes[node.opcodeIndex].builtinCode
        if code in (fb.BuiltinOperator.QUANTIZE, fb.BuiltinOperator.DEQUANTIZE):
            continue
        return "" if set(read) & set(integers) else f"it reads {read}"
    return "no operator writes it"


def _alone(folder: Path) -> Callable[[Batch], Any]:
    """Return a saved model as plain LiteRT runs it."""
    interpreter = Interpreter(model_path=str(folder / "model.tflite"))

    def run(batch: Batch) -> list[np.ndarray]:
        for entry, array in zip(interpreter.get_input_details(), batch, strict=True):
            interpreter.resize_tensor_input(entry["index"], array.shape)
        interpreter.allocate_tensors()
        for entry, array in zip(interpreter.get_input_details(), batch, strict=True):
            interpreter.set_tensor(entry["index"], array)
        interpreter.invoke()
        outputs = interpreter.get_output_details()
        return [interpreter.get_tensor(entry["index"]) for entry in outputs]

    return run


def _case(path: Path, model: bytes, shape: tuple[int, ...]) -> AdapterCase:
    path.write_bytes(model)
    (path.parent / "model.tflite").write_bytes(model)
    rng = np.random.default_rng(5)
    batches = [(rng.normal(size=shape).astype(np.float32),) for _ in range(3)]
    one_row = (rng.normal(size=(1, *shape[1:])).astype(np.float32),)
    zeros = (np.zeros((7, *shape[1:]), np.float32),)
    return AdapterCase(
        card=next(iter(octavo_adapters())),
        model=path,
        batches=batches,
        smaller=False,
        witness=_witness,
        source=_alone(path.parent),
        loads_alone=_alone,
        odd=[one_row, zeros],
    )


class TestImages(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> AdapterCase:
        path = tmp_path_factory.mktemp("cnn") / "cnn.tflite"
        return _case(path, models.cnn(), (4, 13, 13, 3))


class TestLinear(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> AdapterCase:
        path = tmp_path_factory.mktemp("mlp") / "mlp.tflite"
        return _case(path, models.mlp(), (9, 24))


class TestAttention(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> AdapterCase:
        path = tmp_path_factory.mktemp("attention") / "attention.tflite"
        return _case(path, models.transformer(), (3, 6, 16))
