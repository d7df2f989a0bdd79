"""The OpenVINO backend keeps the promises that every backend makes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("openvino")

import openvino as ov
from onnx import helper
from onnx.reference import ReferenceEvaluator

from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.conformance import AdapterCase, AdapterConformance
from octavo.plugin import Batch, Candidate
from tests.adapters.onnx import models

HOST = PluginHost(third_party=False)
INTEGERS = ("i8", "u8")
PACKED = (*INTEGERS, "i4", "u4", "u2", "nf4", "f4e2m1", "f8e4m3", "f8e5m2")
RENAMED = {
    "scores": "scale",
    "classifier": "y",
    "down": "y",
    "first": "first_2",
    "second": "y",
}
"""Ops that may go by the name of what is fused behind them: a factor, a bias."""


def as_openvino(proto: Any) -> ov.Model:
    return ov.Core().read_model(proto.SerializeToString(), b"")


def perceptron() -> onnx.ModelProto:
    """Two linear layers: a Gemm, and a MatMul with an Add."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w2"], ["m"], "second"),
        helper.make_node("Add", ["m", "b2"], ["y"], "second_bias"),
    ]
    tensors = models.weights(w1=(48, 33), b1=(48,), w2=(48, 7), b2=(7,))
    return models.build(nodes, tensors, {"x": ["n", 33]}, {"y": ["n", 7]})


def rows() -> list[tuple[np.ndarray]]:
    random = np.random.default_rng(0)
    return [(random.normal(size=(16, 33)).astype(np.float32),) for _ in range(3)]


def witness(candidate: Candidate, name: str) -> str:
    """Return '' where the execution graph computes an op on codes.

    It reads OpenVINO's own graph by itself, and neither the ledger nor what writes it.
    """
    shown: list[tuple[str, str]] = []
    own_names = {name, f"{name}_bias", RENAMED.get(name, name)}
    for (
        node
    ) in candidate.native.compiled.compiled.get_runtime_model().get_ordered_ops():
        info = {
            key: str(value.astype(str)) for key, value in node.get_rt_info().items()
        }
        originals = info.get("originalLayersNames", "").split(",")
        names = {
            own.split("/")[0].removesuffix("_original")
            for own in (*originals, node.get_friendly_name())
        }
        if own_names & names and info["layerType"] != "FakeQuantize":
            shown.append((info["primitiveType"], info["runtimePrecision"]))
    is_weight_only = candidate.recipe[name].mode == "weight_only"
    known = PACKED if is_weight_only else INTEGERS
    if any(precision in known for _, precision in shown):
        return ""
    return f"it is run as {shown}"


def source(proto: onnx.ModelProto) -> Callable[[Batch], Any]:
    """Return a model as ONNX's own reference runs it: neither OpenVINO nor octavo."""
    evaluator = ReferenceEvaluator(proto)
    names = [info.name for info in proto.graph.input]
    return lambda batch: evaluator.run(None, dict(zip(names, batch, strict=True)))


def alone(folder: Path) -> Callable[[Batch], Any]:
    """Return a saved model as plain OpenVINO runs it."""
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(folder / "model.xml", "CPU", options)
    return lambda batch: list(compiled(list(batch)).values())


def case_of(
    proto: onnx.ModelProto, batches: Sequence[Batch], folder: Path, odd: Batch
) -> AdapterCase:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    given = [
        tuple(batch.values()) if isinstance(batch, dict) else batch for batch in batches
    ]
    return AdapterCase(
        HOST.adapters()["openvino"],
        as_openvino(proto),
        given,
        host=HOST,
        smaller=False,
        ops_per_type=3,
        witness=witness,
        source=source(proto),
        opens=path,
        loads_alone=alone,
        odd=[odd],
    )


class TestConvolutional(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> AdapterCase:
        folder = tmp_path_factory.mktemp("cnn")
        zeros = (np.zeros((1, 3, 12, 12), np.float32),)
        return case_of(models.convolutional(), models.images(), folder, zeros)


class TestTransformer(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> AdapterCase:
        folder = tmp_path_factory.mktemp("transformer")
        one_token = (np.zeros((1, 1), np.int64),)
        return case_of(models.transformer_block(), models.tokens(), folder, one_token)


class TestPerceptron(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> AdapterCase:
        folder = tmp_path_factory.mktemp("mlp")
        return case_of(perceptron(), rows(), folder, (rows()[0][0][:1],))
