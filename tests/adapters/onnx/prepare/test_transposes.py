"""Swaps of the last two axes as PyTorch's exporter writes them become one Transpose, and nothing
else does."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.prepare.preparation import prepare
from octavo.adapters.onnx.prepare.source import read
from octavo.core.values.recipe import Recipe


def swapped(
    batch: str = "n",
    rows: str = "s",
    flat: str = "rest, second, third",
    full: str = "head, third, second",
) -> onnx.ModelProto:
    """What torch.onnx writes for the keys of scaled_dot_product_attention."""
    text = f"""swapped (float[{batch}, {rows}, 4, 8] x) => (float[a, b, c, d] y) {{
        heads = Transpose<perm = [0, 2, 1, 3]>(x)
        dims = Shape(heads)
        second = Slice(dims, minus2, minus1)
        third = Slice(dims, minus1, end)
        head = Slice(dims, begin, minus2)
        to_flat = Concat<axis = 0>({flat})
        to_full = Concat<axis = 0>({full})
        matrices = Reshape(heads, to_flat)
        turned = Transpose<perm = [0, 2, 1]>(matrices)
        keys = Reshape(turned, to_full)
        y = Neg(keys)
    }}"""
    graph = onnx.parser.parse_graph(text)
    numbers = {
        "rest": -1,
        "minus1": -1,
        "minus2": -2,
        "begin": -(2**63),
        "end": 2**63 - 1,
    }
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([n]), name) for name, n in numbers.items()
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


@pytest.mark.parametrize(("batch", "rows"), [("n", "s"), ("2", "5")])
def test_a_swap_is_one_transpose(batch: str, rows: str) -> None:
    proto = swapped(batch, rows)
    prepared = prepare(read(proto))
    assert [
        (
            n.op_type,
            list(n.attributes["perm"].as_ints()) if n.op_type == "Transpose" else [],
        )
        for n in prepared.graph
    ] == [
        ("Transpose", [0, 2, 3, 1]),
        ("Neg", []),
    ]
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 8)).astype(np.float32)
    candidate = OnnxAdapter(OnnxConfig()).open(proto).apply(Recipe(backend="onnx"), {})
    np.testing.assert_array_equal(
        candidate.native(x), ReferenceEvaluator(proto).run(None, {"x": x})[0]
    )


@pytest.mark.parametrize(
    "other",
    [
        {"flat": "rest, third, second"},
        {"full": "head, second, third"},
        {"flat": "second, third, rest"},
    ],
)
def test_what_is_no_swap_stays(other: dict[str, str]) -> None:
    proto = swapped(**other)
    assert [n.op_type for n in prepare(read(proto)).graph].count("Reshape") == 2
    x = np.random.default_rng(0).normal(size=(2, 8, 4, 8)).astype(np.float32)
    candidate = OnnxAdapter(OnnxConfig()).open(proto).apply(Recipe(backend="onnx"), {})
    np.testing.assert_array_equal(
        candidate.native(x), ReferenceEvaluator(proto).run(None, {"x": x})[0]
    )
