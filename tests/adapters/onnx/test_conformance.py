"""The ONNX backend keeps the promises that every backend makes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.conformance import AdapterCase, AdapterConformance
from octavo.plugin import Batch, Candidate
from tests.adapters.onnx import models

HOST = PluginHost(third_party=False)
LOW = (
    "Integer",
    "QLinear",
    "QGemm",
    "DynamicQuantizeMatMul",
    "NBits",
    "BlockQuantized",
)
"""Parts of the names of ONNX Runtime's operators that read codes; QuantizeLinear is none."""


def _session(file: Path, **options: Any) -> ort.InferenceSession:
    made = ort.SessionOptions()
    made.log_severity_level = 3
    for name, value in options.items():
        setattr(made, name, value)
    return ort.InferenceSession(file, made, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="class")
def witness(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Candidate, str], str]:
    """Tells what operator runs an op in the graph that ONNX Runtime itself writes."""
    seen: dict[int, tuple[Candidate, onnx.GraphProto]] = {}

    def graph_of(candidate: Candidate) -> onnx.GraphProto:
        if id(candidate) not in seen:
            folder = tmp_path_factory.mktemp("witness")
            candidate.save(folder)
            optimized = folder / "optimized.onnx"
            _session(folder / "model.onnx", optimized_model_filepath=str(optimized))
            seen[id(candidate)] = candidate, onnx.load(optimized).graph
        return seen[id(candidate)][1]

    def why_not(candidate: Candidate, name: str) -> str:
        graph = graph_of(candidate)
        halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        half = {t.name for t in graph.initializer if t.data_type in halves}
        own = [n for n in graph.node if n.name == name or n.name.startswith(f"{name}_")]
        for node in own:
            if any(part in node.op_type for part in LOW) or half & set(node.input):
                return ""
        return f"it is run as {[node.op_type for node in own]}"

    return why_not


def _source(proto: onnx.ModelProto) -> Callable[[Batch], Any]:
    """Return a model as ONNX's own reference runs it."""
    evaluator = ReferenceEvaluator(proto)
    names = [info.name for info in proto.graph.input]
    return lambda batch: evaluator.run(None, dict(zip(names, batch, strict=True)))


def _alone(folder: Path) -> Callable[[Batch], Any]:
    """Return a saved model as plain ONNX Runtime runs it."""
    session = _session(folder / "model.onnx")
    names = [info.name for info in session.get_inputs()]
    return lambda batch: session.run(None, dict(zip(names, batch, strict=True)))


def _case(
    proto: onnx.ModelProto, batches: Sequence[Batch], odd: Batch, **more: Any
) -> AdapterCase:
    return AdapterCase(
        HOST.adapters()["onnx"],
        proto,
        [
            tuple(batch.values()) if isinstance(batch, dict) else batch
            for batch in batches
        ],
        host=HOST,
        source=_source(proto),
        loads_alone=_alone,
        odd=[odd],
        **more,
    )


class TestConvolutional(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, witness: Callable[[Candidate, str], str]) -> AdapterCase:
        zeros = (np.zeros((1, 3, 12, 12), np.float32),)
        return _case(
            models.convolutional(),
            models.images(),
            zeros,
            smaller=False,
            witness=witness,
        )


class TestTransformer(AdapterConformance):
    """Without a witness: as a stranger would write it first."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> AdapterCase:
        path = tmp_path_factory.mktemp("transformer") / "model.onnx"
        onnx.save(models.transformer_block(), path)
        one_token = (np.zeros((1, 1), np.int64),)
        proto = models.transformer_block()
        return _case(proto, models.tokens(), one_token, opens=path)
