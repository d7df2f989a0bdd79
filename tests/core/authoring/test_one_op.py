"""Parameters of one op: round to nearest on the weight's own range, and one range for all else."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.plugin import (
    Op,
    OpScheme,
    QuantSpec,
    SchemeError,
    Weight,
    one_op_parameters,
)

RNG = np.random.default_rng(3)
W = RNG.normal(size=(4, 6)).astype(np.float32)
OP = Op("fc", "linear", ("x",), ("y",), Weight("w", W.shape))
X8 = QuantSpec(dtype="uint8", symmetric=False)


def test_a_weight_of_one_scale_per_channel_is_rounded_to_nearest() -> None:
    spec = QuantSpec(dtype="int8", granularity="channel")
    scheme = OpScheme(mode="static", weight=spec, input=X8, output=X8)
    found = one_op_parameters(OP, scheme, {"w": W}, -1.0, 3.0)
    assert found.weight is not None
    scale = np.abs(W).max(axis=1) / 127
    np.testing.assert_allclose(found.weight.params.scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(found.weight.codes, np.round(W / scale[:, None]))
    assert found.weight.codes.dtype == np.int8 and found.weight.params.axis == 0
    for side in (found.inputs, found.outputs):
        (params,) = side
        assert params is not None
        assert float(params.scale) == pytest.approx(4 / 255)
        assert int(params.zero_point) == 64


def test_the_channel_axis_is_the_weights_own() -> None:
    op = Op("fc", "linear", ("x",), ("y",), Weight("w", (6, 4), channel_axis=1))
    scheme = OpScheme(
        mode="weight_only", weight=QuantSpec(dtype="int8", granularity="channel")
    )
    found = one_op_parameters(op, scheme, lambda name: W.T).weight
    assert found is not None and found.params.axis == 1
    assert found.codes.flags.c_contiguous
    step = np.abs(W).max(axis=1) / 127
    assert np.all(np.abs(found.dequantize() - W.T) <= step / 2 + 1e-6)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "nf4", "float16", "fp8_e4m3fn"])
def test_every_kind_of_number_comes_back_near(dtype: str) -> None:
    asymmetric = dtype == "uint4"
    spec = QuantSpec(dtype=dtype, symmetric=not asymmetric, granularity="group:3")
    if dtype == "float16":
        spec = QuantSpec(dtype=dtype)
    scheme = OpScheme(mode="weight_only", weight=spec)
    found = one_op_parameters(OP, scheme, {"w": W}).weight
    assert found is not None
    error = np.linalg.norm(found.dequantize() - W) / np.linalg.norm(W)
    assert 0 < error < 0.15


def test_further_weights_come_in_order() -> None:
    op = Op(
        "rnn",
        "lstm",
        ("x",),
        ("y",),
        Weight("w", W.shape),
        further=(Weight("r", (4, 4)),),
    )
    scheme = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8"))
    tensors = {"w": W, "r": np.eye(4, dtype=np.float32)}
    found = one_op_parameters(op, scheme, tensors)
    (second,) = found.further
    np.testing.assert_array_equal(second.codes, 127 * np.eye(4))


def test_a_reduced_range_gives_up_one_bit() -> None:
    scheme = OpScheme(mode="static", weight=QuantSpec(dtype="int8"), input=X8)
    whole = one_op_parameters(OP, scheme, {"w": W})
    reduced = one_op_parameters(OP, scheme, {"w": W}, reduced=True)
    assert whole.weight is not None and reduced.weight is not None
    assert np.abs(whole.weight.codes).max() == 127
    assert np.abs(reduced.weight.codes).max() <= 64
    assert reduced.scheme == scheme and reduced.carried != scheme


def test_a_scheme_of_a_weight_needs_one() -> None:
    scheme = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8"))
    with pytest.raises(SchemeError, match="'add' has none"):
        one_op_parameters(Op("add", "add", ("a", "b"), ("y",)), scheme, {})


def test_what_was_seen_of_a_value_is_its_range() -> None:
    spec = QuantSpec(dtype="int8", granularity="channel")
    scheme = OpScheme(mode="static", weight=spec, input=X8, output=X8)
    seen = {"x": np.array([-0.5, 2.0], np.float32)}
    found = one_op_parameters(OP, scheme, {"w": W}, -1.0, 3.0, seen=seen)
    scales = [float(side[0].scale) for side in (found.inputs, found.outputs) if side[0]]
    assert scales == [pytest.approx(2.5 / 255), pytest.approx(4 / 255)]
