"""One op at a time against plain NumPy, and what this CPU's sums of 16 bits do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino as ov
import openvino.opset13 as ops

from octavo.adapters.openvino import OpenVinoConfig
from octavo.adapters.openvino.adapter import OpenVinoAdapter
from octavo.plugin import (
    DataError,
    ModelError,
    OpScheme,
    QuantSpec,
    Recipe,
    SchemeError,
    one_op_parameters,
)

_W8 = QuantSpec(dtype="int8", granularity="channel")
_U8 = QuantSpec(dtype="uint8", symmetric=False)


def product(weight: np.ndarray) -> ov.Model:
    x = ops.parameter([-1, weight.shape[1]], np.float32)
    x.output(0).set_names({"x"})
    made = ops.matmul(x, ops.constant(weight), False, True)
    made.set_friendly_name("fc")
    return ov.Model([made.output(0)], [x], "product")


def carried_out(model: ov.Model, scheme: OpScheme, low: float, high: float) -> Any:
    session = OpenVinoAdapter(OpenVinoConfig(threads=1)).open(model)
    (op,) = session.describe().ops
    is_narrowed = session.capability().carried(op, scheme)[1] != ""
    given = one_op_parameters(
        op, scheme, session.tensor, low, high, reduced=is_narrowed
    )
    recipe = Recipe({op.name: scheme}, backend="openvino")
    return session.apply(recipe, {op.name: given}), given


def rounded(x: np.ndarray, params: Any) -> np.ndarray:
    codes = np.round(x / params.scale) + params.zero_point
    return (np.clip(codes, 0, 255) - params.zero_point) * params.scale


@pytest.mark.parametrize("width", [1, 3, 33, 64])
def test_a_static_product_is_that_of_the_rounded_numbers(width: int) -> None:
    random = np.random.default_rng(width)
    weight = random.normal(size=(5, width)).astype(np.float32)
    x = random.uniform(-2, 3, (7, width)).astype(np.float32)
    scheme = OpScheme(mode="static", weight=_W8, input=_U8)
    candidate, given = carried_out(product(weight), scheme, -2.0, 3.0)
    expected = rounded(x, given.inputs[0]) @ given.weight.dequantize().T
    (got,) = candidate.run((x,))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert candidate.ledger["fc"].realization == "kernel"


def test_the_largest_codes_do_not_saturate() -> None:
    """All terms are as large as codes can be: sums of 16 bits would lose most of them."""
    x = np.full((2, 64), 3.0, np.float32)
    scheme = OpScheme(mode="static", weight=_W8, input=_U8)
    candidate, _ = carried_out(product(np.ones((5, 64), np.float32)), scheme, 0.0, 3.0)
    (got,) = candidate.run((x,))
    np.testing.assert_allclose(got, 192.0, rtol=0.01)


@pytest.mark.parametrize("dtype", ["int8", "uint4", "int4", "nf4", "fp4_e2m1"])
def test_packed_weights_are_decoded_exactly(dtype: str) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(6, 64)).astype(np.float32)
    x = random.normal(size=(3, 64)).astype(np.float32)
    spec = QuantSpec(
        dtype=dtype,
        symmetric=dtype != "uint4",
        granularity="group:32",
        scale_dtype="float16",
    )
    scheme = OpScheme(mode="weight_only", weight=spec)
    candidate, given = carried_out(product(weight), scheme, 0.0, 1.0)
    (got,) = candidate.run((x,))
    expected = x @ given.weight.dequantize().T
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    held = {n.get_element_type().get_type_name() for n in candidate.model.get_ops()}
    assert held & {"i8", "u4", "i4", "nf4", "f4e2m1"}


def test_blocks_that_do_not_fit_are_refused() -> None:
    spec = QuantSpec(dtype="int4", granularity="group:32", scale_dtype="float16")
    scheme = OpScheme(mode="weight_only", weight=spec)
    session = OpenVinoAdapter(OpenVinoConfig()).open(product(np.ones((4, 33), "f4")))
    (op,) = session.describe().ops
    with pytest.raises(SchemeError, match="33 features"):
        session.capability().realization(op, scheme)


def test_junk_is_refused(tmp_path: Any) -> None:
    adapter = OpenVinoAdapter(OpenVinoConfig())
    for name in ("junk.xml", "junk.onnx"):
        path = tmp_path / name
        path.write_bytes(b"no model at all")
        with pytest.raises(ModelError):
            adapter.open(path)
    with pytest.raises(ModelError):
        adapter.open(tmp_path / "missing.xml")
    with pytest.raises(ModelError):
        adapter.load(tmp_path)
    candidate = adapter.open(product(np.ones((4, 8), np.float32))).reference()
    for batch in ((np.ones((2, 9), "f4"),), (), {"y": np.ones((2, 8), "f4")}):
        with pytest.raises(DataError):
            candidate.run(batch)
