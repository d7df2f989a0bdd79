"""Weight algorithms: GPTQ against a textbook implementation, the others against what
they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.parts import Part
from octavo.core.errors import NonFiniteWeight, SchemeError
from octavo.core.numerics.affine import affine_params, integer_range
from octavo.core.numerics.floats import FLOAT_FORMATS, from_codes
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.algorithms import octavo_algorithms
from octavo.core.quantizing.algorithms.gptq import Gptq, GptqConfig, feedback_matrix
from octavo.core.quantizing.algorithms.learned import output_error
from octavo.core.quantizing.bias import corrected_bias
from octavo.core.values.scheme import QuantSpec
from tests.arrays import each_kind

PARTS: dict[str, Part[Any]] = {p.name: p for p in octavo_algorithms()}
FEW = {"adaround": {"iterations": 60}, "autoround": {"iterations": 60}}


def layer(
    rows: int = 24, features: int = 96, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and the Gram matrix of correlated inputs with a few loud channels."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(4 * features, features)) @ (
        np.eye(features) + 0.3 * random.normal(size=(features, features))
    )
    inputs[:, ::17] *= 6
    return random.normal(size=(rows, features)).astype(np.float32), (
        inputs.T @ inputs
    ).astype(np.float32)


def run(
    name: str, weight: Any, gram: Any, spec: QuantSpec, **options: Any
) -> QuantizedTensor:
    part = PARTS[name]
    # Not NumPy's own diagonal, which may not be written to.
    squares = None if gram is None else gram.diagonal() + 0
    drift = None if gram is None else gram * 0.1
    context = WeightContext(
        gram=gram, channel_square=squares, quantized_gram=gram, drift=drift
    )
    found: QuantizedTensor = part.build(
        part.config(kind=name, **{**FEW.get(name, {}), **options})
    ).quantize(weight, spec, context)
    return found


def loss(found: QuantizedTensor, weight: np.ndarray, gram: np.ndarray) -> float:
    error = np.asarray(found.dequantize()).astype(np.float64) - weight
    return float(np.trace(error @ gram @ error.T))


def textbook(
    weight: np.ndarray,
    gram: np.ndarray,
    spec: QuantSpec,
    damping: float,
    drift: np.ndarray | None = None,
) -> np.ndarray:
    """Algorithm 1 of Frantar et al. 2023 (GPTQ) in float64, column by column, with the inverse that
    the paper has; with a drift (X - X')^T X' algorithm 1 of Li et al. 2025 (GPTAQ)."""
    w, h = weight.astype(np.float64).copy(), gram.astype(np.float64).copy()
    features = w.shape[1]
    h[np.diag_indices(features)] += damping * np.diag(h).mean()
    inverse = np.linalg.cholesky(np.linalg.inv(h)).T
    lost = np.zeros_like(h) if drift is None else drift.astype(np.float64)
    carried = np.triu(lost @ inverse.T, 1) @ inverse
    size = spec.group_size or features
    low, high = integer_range(spec)
    codes = np.zeros_like(w)
    for j in range(features):
        if j % size == 0:
            group = w[:, j : j + size].astype(np.float32)
            params = affine_params(group.min(1), group.max(1), spec)
            scale, zero = params.scale.astype(np.float64), params.zero_point
        met = w[:, j].copy()
        codes[:, j] = np.clip(np.round(met / scale) + zero, low, high)
        error = (met - scale * (codes[:, j] - zero)) / inverse[j, j]
        w[:, j:] -= np.outer(error, inverse[j, j:])
        w[:, j:] += np.outer(met, carried[j, j:])
    return codes


@each_kind
@pytest.mark.parametrize(
    ("features", "group"), [(96, 32), (100, 32), (260, 128), (300, None), (400, 160)]
)
@pytest.mark.parametrize(
    ("dtype", "symmetric"), [("int4", True), ("uint4", False), ("uint2", False)]
)
def test_gptq_equals_the_textbook(
    make: Any, features: int, group: int | None, dtype: str, symmetric: bool
) -> None:
    weight, gram = layer(16, features)
    spec = QuantSpec(
        dtype=dtype,
        symmetric=symmetric,
        granularity=f"group:{group}" if group else "channel",
    )
    found = Gptq(GptqConfig()).quantize(
        make(weight), spec, WeightContext(gram=make(gram))
    )
    expected = textbook(weight, gram, spec, 0.01)
    # float32 against float64: a value may fall on the other side of a tie, and what follows it in
    # its row with it
    same = (np.asarray(found.codes) == expected).all(1)
    assert same.mean() >= 0.9
    assert np.abs(np.asarray(found.codes)[~same] - expected[~same]).max(initial=0) <= 2


def test_feedback_factors_the_gram_matrix() -> None:
    _, gram = layer(1, 64)
    gram[5, :] = gram[:, 5] = 0
    unit = feedback_matrix(gram, 0.01)
    damped = gram.astype(np.float64) + 0.01 * np.diag(gram).mean() * np.eye(64)
    damped[5, 5] += np.diag(gram).mean()
    middle = np.linalg.solve(unit.astype(np.float64), damped) @ np.linalg.inv(
        unit.astype(np.float64).T
    )
    np.testing.assert_allclose(
        middle, np.diag(np.diag(middle)), atol=1e-3 * np.diag(damped).mean()
    )
    assert (np.tril(unit, -1) == 0).all()


def test_gptq_names_a_hopeless_gram_matrix() -> None:
    with pytest.raises(SchemeError, match="not positive definite"):
        feedback_matrix(-np.eye(4, dtype=np.float32), 0.01)


GRIDS = [
    ("int4", "group:32"),
    ("uint2", "group:32"),
    ("uint3", "channel"),
    ("int4", "tensor"),
    ("uint4", "group:40"),
]


@each_kind
@pytest.mark.parametrize(("dtype", "granularity"), GRIDS)
@pytest.mark.parametrize("name", ["awq", "gptq", "autoround", "adaround"])
def test_less_output_error_than_rounding_to_nearest(
    name: str, dtype: str, granularity: str, make: Any
) -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype=dtype, symmetric=dtype[0] != "u", granularity=granularity)
    plain = loss(run("rtn", weight, None, spec), weight, gram)
    found = run(name, make(weight), make(gram), spec)
    assert loss(found, weight, gram) < plain
    low, high = integer_range(spec)
    assert low <= int(found.codes.min())
    assert int(found.codes.max()) <= high
    assert tuple(found.params.scale.shape) == tuple(
        run("rtn", weight, None, spec).params.scale.shape
    )


@pytest.mark.parametrize(
    "options",
    [
        {"act_order": True},
        {"static_groups": True},
        {"clip": "mse"},
        {"act_order": True, "clip": "mse"},
    ],
    ids=str,
)
def test_gptq_settings(options: dict[str, Any]) -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype="uint2", symmetric=False, granularity="group:32")
    found = run("gptq", weight, gram, spec, **options)
    assert loss(found, weight, gram) < 0.8 * loss(
        run("rtn", weight, None, spec), weight, gram
    )
    if "clip" not in options:
        np.testing.assert_array_equal(
            found.params.scale, run("rtn", weight, None, spec).params.scale
        )


@pytest.mark.parametrize(
    "dtype", ["nf4", "fp4", "mxfp4", "mxint8", "nvfp4", "fp8_e4m3fn", "int8"]
)
@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_any_dtype(name: str, dtype: str) -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype=dtype, granularity="group:16")
    # Where a smaller range never helps (int8), awq keeps the whole one.
    assert loss(run(name, weight, gram, spec), weight, gram) <= 1.0001 * loss(
        run("rtn", weight, None, spec), weight, gram
    )


@pytest.mark.parametrize("dtype", ["uint2", "int3", "nf4", "fp4", "uint4"])
@each_kind
def test_hqq_lowers_the_norm_it_minimises(dtype: str, make: Any) -> None:
    weight, _ = layer()
    spec = QuantSpec(dtype=dtype, symmetric=dtype[0] != "u", granularity="group:32")

    def norm(found: QuantizedTensor) -> float:
        return float((np.abs(np.asarray(found.dequantize()) - weight) ** 0.7).sum())

    assert norm(run("hqq", make(weight), None, spec)) < norm(
        run("rtn", weight, None, spec)
    )


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(dtype="nvfp4", granularity="group:16"),
        QuantSpec(dtype="int4", granularity="group:16", scale_dtype="uint8"),
    ],
)
def test_hqq_keeps_both_levels_of_scales(spec: QuantSpec) -> None:
    weight, _ = layer()
    found = run("hqq", weight, None, spec)
    assert found.extra is not None
    codes = found.extra["scale_codes"]
    if spec.dtype == "nvfp4":
        expected = (
            from_codes(codes, FLOAT_FORMATS["fp8_e4m3fn"]) * found.extra["scale_scale"]
        )
    else:
        expected = (
            codes * found.extra["scale_scale"][0] + found.extra["scale_offset"][0]
        )
    np.testing.assert_allclose(found.params.scale, expected, rtol=1e-6)


def test_clip_search_lowers_the_error() -> None:
    weight, _ = layer()
    for granularity in ("tensor", "channel", "group:32", "block:8x16"):
        spec = QuantSpec(dtype="int3", granularity=granularity)
        errors = [
            (
                (run("rtn", weight, None, spec, clip=clip).dequantize() - weight) ** 2
            ).mean()
            for clip in ("mse", "none")
        ]
        assert errors[0] < errors[1]


def test_conventions_reach_the_weight() -> None:
    weight, _ = layer()
    spec = QuantSpec(dtype="int8", granularity="channel")
    found = run("rtn", weight, None, spec, convention="pytorch")
    np.testing.assert_allclose(
        found.params.scale, np.abs(weight).max(1) / 127.5, rtol=1e-6
    )


@each_kind
@pytest.mark.parametrize("name", ["awq", "autoround", "adaround"])
@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(dtype="uint3", symmetric=False, granularity="group:32"),
        QuantSpec(dtype="int2", granularity="channel"),
    ],
    ids=str,
)
def test_outputs_do_not_shrink(spec: QuantSpec, name: str, make: Any) -> None:
    """tr(W_q G W^T) = tr(W G W^T) in each row: what is lost at one output is gained at another."""
    weight, gram = layer()
    found = np.asarray(run(name, make(weight), make(gram), spec).dequantize()).astype(
        np.float64
    )
    outputs = weight @ gram.astype(np.float64)
    np.testing.assert_allclose(
        (outputs * found).sum(1), (outputs * weight).sum(1), rtol=1e-4
    )


def test_scales_of_a_format_are_not_stretched() -> None:
    weight, gram = layer()
    for spec in (
        QuantSpec(dtype="mxfp4", granularity="group:32"),
        QuantSpec(dtype="int3", granularity="group:32", scale_dtype="float16"),
    ):
        found = run("awq", weight, gram, spec).params.scale
        if spec.scale_dtype:
            np.testing.assert_array_equal(found, found.astype(np.float16))
        else:
            assert (np.frexp(found)[0] == 0.5).all()


@each_kind
def test_stochastic_rounding_is_right_on_average(make: Any) -> None:
    weight = np.full((4, 4096), 0.3, np.float32)
    weight[:, 0] = 7
    spec = QuantSpec(dtype="int4", granularity="channel")
    found = [
        np.asarray(
            run(
                "rtn", make(weight), None, spec, rounding="stochastic", seed=s
            ).dequantize()
        )
        for s in (1, 1, 2)
    ]
    assert found[0][:, 1:].mean() == pytest.approx(0.3, abs=0.02)
    assert set(np.unique(found[0])) == {0.0, 1.0, 7.0}
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()
    with pytest.raises(SchemeError, match="stochastic rounding is for integers"):
        run(
            "rtn",
            weight,
            None,
            QuantSpec(dtype="nf4", granularity="channel"),
            rounding="stochastic",
        )


@pytest.mark.parametrize(
    "name", ["awq", "gptq", "autoround", "adaround", "scale_estimation"]
)
def test_a_missing_gram_matrix_is_named(name: str) -> None:
    with pytest.raises(SchemeError, match="needs the Gram matrix"):
        run(name, layer()[0], None, QuantSpec(dtype="int4", granularity="group:32"))


def test_what_cannot_be_done_is_refused() -> None:
    weight, gram = layer()
    with pytest.raises(SchemeError, match="cannot share a scale over rows"):
        run("gptq", weight, gram, QuantSpec(dtype="int4", granularity="block:4x32"))
    with pytest.raises(SchemeError, match="cannot share a scale over rows"):
        run(
            "autoround", weight, gram, QuantSpec(dtype="int4", granularity="block:4x32")
        )
    for name in ("autoround", "adaround"):
        with pytest.raises(SchemeError, match="rounding of integers"):
            run(name, weight, gram, QuantSpec(dtype="nf4", granularity="group:32"))


@pytest.mark.parametrize("name", PARTS)
def test_bad_and_empty_weights(name: str) -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype="int4", granularity="group:32")
    bad = weight.copy()
    bad[3, 4] = np.nan
    with pytest.raises(NonFiniteWeight):
        run(name, bad, gram, spec)
    silent = weight.copy()
    silent[2] = 0
    assert (run(name, silent, gram, spec).dequantize()[2] == 0).all()
    assert run(name, weight[:0], gram, spec).shape == (0, 96)


@pytest.mark.parametrize("name", PARTS)
def test_the_same_numbers_twice(name: str) -> None:
    weight, gram = layer()
    spec = QuantSpec(dtype="uint2", symmetric=False, granularity="group:32")
    one, other = (
        run(name, weight, gram, spec),
        run(name, weight.copy(), gram.copy(), spec),
    )
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.params.scale, other.params.scale)
    assert one.codes is not weight


def test_gradient_of_the_output_error() -> None:
    """Half the gradient, against central differences."""
    random = np.random.default_rng(0)
    error, (_, gram) = random.normal(size=(3, 8)), layer(1, 8)
    gram = gram.astype(np.float64)
    value, slope = output_error(error, gram)
    for i, j in ((0, 0), (1, 5), (2, 7)):
        step = np.zeros_like(error)
        step[i, j] = 1e-5
        difference = (
            output_error(error + step, gram)[0].sum()
            - output_error(error - step, gram)[0].sum()
        ) / 2e-5
        assert difference == pytest.approx(2 * slope[i, j], rel=1e-5)
    assert value.sum() == pytest.approx(np.trace(error @ gram @ error.T))


@pytest.mark.parametrize("groups", [1, 3])
def test_bias_correction_keeps_the_mean_output(groups: int) -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(1.5, 1, size=(500, groups, 10)).astype(np.float32)
    weight = random.normal(size=(6 * groups, 10)).astype(np.float32)
    bias = random.normal(size=6 * groups).astype(np.float32)
    found = run("rtn", weight, None, QuantSpec(dtype="int3", granularity="channel"))
    fixed = corrected_bias(bias, weight, found, inputs.mean(0))

    def mean_output(w: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (
            np.einsum("ngf,gof->go", inputs, w.reshape(groups, 6, 10)).reshape(-1) / 500
            + b
        )

    np.testing.assert_allclose(
        mean_output(found.dequantize(), fixed), mean_output(weight, bias), atol=1e-4
    )
    assert (
        np.abs(mean_output(found.dequantize(), bias) - mean_output(weight, bias)).max()
        > 0.05
    )
