"""ONNX's own backend tests, run as onnx documents it for backends: a Backend subclass and
BackendTest.

Everything that is left out is named below with its reason. The cases run on the graph's own
kernels, or, where the graph has none, on onnx's reference evaluator, which the ledger says of each
such node; both are counted.
"""

from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx import numpy_helper
from onnx.backend.base import Backend, BackendRep

from octavo.adapters.numpy.files.onnx_reader import from_onnx
from octavo.adapters.numpy.kernels.fallback import native
from octavo.adapters.numpy.run.kernels import Kernels
from octavo.adapters.numpy.run.program import Program
from tests.adapters.numpy.cases import matching

LEFT_OUT = {
    "sequences and optionals are no tensors": (
        r"sequence|optional|_seq|identity_opt|if_opt"
        r"|range_.*_expanded|linear_attention_.*_expanded"
    ),
    "strings are no numbers": r"string|strnorm|regex",
    "training operators": r"adam|adagrad|momentum|nesterov|training_dropout",
    "random results": r"bernoulli",
    "operators of the ai.onnx.ml and ai.onnx.preview domains": (
        r"flexattention|ai_onnx_ml|array_feature|binarizer|label_encoder|tree_ensemble"
    ),
    "Scan of operator set 8, whose batches the graph's Scan-9 does not have": r"test_scan_sum_",
    "onnx's expectation is rounded at each step of half precision": (
        r"swiglu_float16_expanded|causal_conv_with_state_silu_fp16_expanded"
    ),
    "decodes image files": r"image_decoder",
}
QUANTIZATION = (
    r"^test_(de|dynamic)?quantizelinear|^test_qlinear"
    r"|^test_matmulinteger|^test_convinteger"
)


class Prepared(BackendRep):
    def __init__(self, program: Program) -> None:
        self._program = program

    def run(self, inputs: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        # Types that onnx's runner has no NumPy array of (float8, int4) come as TensorProto.
        arrays = [
            numpy_helper.to_array(i) if isinstance(i, onnx.TensorProto) else i
            for i in inputs
        ]
        return self._program.run(arrays)


class NumpyBackend(Backend):
    @classmethod
    def prepare(
        cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any
    ) -> Prepared:
        return Prepared(Program(from_onnx(model), Kernels(1 << 22)))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


_tests = onnx.backend.test.BackendTest(NumpyBackend, __name__)
for _pattern in LEFT_OUT.values():
    _tests.exclude(_pattern)
OnnxBackendNodeModelTest = _tests.test_cases["OnnxBackendNodeModelTest"]
for _name in [n for n in vars(OnnxBackendNodeModelTest) if n.endswith("_cuda")]:
    delattr(OnnxBackendNodeModelTest, _name)  # the backend is for processors only


def count(pattern: str = "") -> tuple[list[str], list[str]]:
    own, evaluator = [], []
    for case, graph in matching(pattern, tuple(LEFT_OUT.values())):
        (
            own if all(native(node, graph.opset) for node in graph.nodes) else evaluator
        ).append(case.name)
    return own, evaluator


def test_no_quantization_case_is_left_out_and_all_run_on_own_kernels() -> None:
    own, evaluator = count(QUANTIZATION)
    assert len(own) == 45
    assert not evaluator


def test_most_cases_run_on_own_kernels() -> None:
    own, evaluator = count()
    assert len(own) >= 1500
    assert len(evaluator) < 250
