"""Array code stays on its input's device, and runs alike in both namespaces.

A tensor that is made without ``device=`` lands on the default device. Here that is ``meta``, which
holds no numbers: whatever forgets where its input lives cannot be mixed with it, as it could not on
an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

from octavo.core.calibration.calibrators import octavo_calibrators
from octavo.core.calibration.features import FEATURE_OBSERVERS
from octavo.core.contract.algorithm import WeightContext
from octavo.core.numerics.affine import affine_params, dequantize, quantize
from octavo.core.numerics.codec import choose_params, decode, encode, project
from octavo.core.numerics.hadamard import rotate
from octavo.core.numerics.packing import pack, unpack
from octavo.core.numerics.ranges import ranges, token_params
from octavo.core.numerics.rounding import given, stochastic
from octavo.core.numerics.rows import Rows
from octavo.core.quantizing.algorithms import octavo_algorithms
from octavo.core.quantizing.bias import corrected_bias
from octavo.core.values.scheme import QuantSpec

torch = pytest.importorskip("torch")

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(12, 100)).astype(np.float32)
SAMPLES = RANDOM.normal(size=(400, 100)).astype(np.float32)
GRAM = SAMPLES.T @ SAMPLES
IMAGES = RANDOM.normal(size=(2, 4, 5, 5)).astype(np.float32)

INTEGERS = [
    QuantSpec(dtype="int4", granularity="group:32"),
    QuantSpec(dtype="uint4", symmetric=False, granularity="group:20"),
    QuantSpec(dtype="int8", granularity="channel"),
    QuantSpec(dtype="uint3", symmetric=False),
    QuantSpec(dtype="int4", granularity="group:20", scale_dtype="uint8"),
]
OTHERS = [
    *(
        QuantSpec(dtype=d, granularity="group:20")
        for d in ("nf4", "nvfp4", "mxfp4", "mxint8", "fp8_e4m3fn", "fp6", "bfloat16")
    ),
    QuantSpec(dtype="int4", granularity="block:5x16", scale_dtype="fp8_e4m3fn"),
    QuantSpec(dtype="int4", granularity="channel", scale_dtype="e8m0"),
    QuantSpec(dtype="int4", granularity="channel", scale_dtype="float16"),
]
ALGORITHMS = {p.name: p for p in octavo_algorithms()}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "rtn": [{}, {"clip": "mse"}],
    "gptq": [{}, {"act_order": True, "clip": "mse"}],
    "autoround": [{"iterations": 3}],
    "adaround": [{"iterations": 3}],
}
CASES = [
    (name, settings, spec)
    for name in ALGORITHMS
    for settings in SETTINGS.get(name, [{}])
    for spec in (
        INTEGERS if name in ("autoround", "adaround") else [*INTEGERS, *OTHERS]
    )
    if not (name in ("gptq", "gptaq") and spec.granularity.startswith("block:"))
]


def alike(
    function: Callable[..., Any], *arrays: np.ndarray, exact: bool = True
) -> None:
    """Run on NumPy, and on torch with ``meta`` as the default device; compare."""
    expected = function(*arrays)
    tensors = [torch.from_numpy(a.copy()) for a in arrays]
    with torch.device("meta"):
        found = function(*tensors)
    for mine, theirs in zip(
        *(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True
    ):
        assert isinstance(mine, torch.Tensor)
        assert mine.device.type == "cpu"
        numbers = mine.to(torch.float32).numpy()
        if exact:
            np.testing.assert_array_equal(
                numbers, np.asarray(theirs).astype(np.float32)
            )
        else:
            np.testing.assert_allclose(
                numbers, np.asarray(theirs).astype(np.float32), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(("name", "settings", "spec"), CASES, ids=str)
def test_algorithms(name: str, settings: dict[str, Any], spec: QuantSpec) -> None:
    part = ALGORITHMS[name]

    def run(matrix: Any, gram: Any) -> Any:
        xp = array_namespace(gram)
        context = WeightContext(
            gram=gram,
            channel_square=xp.linalg.diagonal(gram) / len(SAMPLES),
            quantized_gram=gram,
            drift=0.01 * gram,
        )
        algorithm = part.build(part.config(kind=name, **settings))
        found = algorithm.quantize(matrix, spec, context)
        second = (
            tuple(found.extra[k] for k in sorted(found.extra)) if found.extra else ()
        )
        return (
            found.dequantize(),
            found.codes,
            found.params.scale,
            found.params.zero_point,
            *second,
        )

    expected, found = run(X, GRAM), None
    with torch.device("meta"):
        found = run(torch.from_numpy(X), torch.from_numpy(GRAM))
    assert all(t.device.type == "cpu" for t in found)
    assert [tuple(t.shape) for t in found] == [tuple(np.shape(t)) for t in expected]
    # Sums in another order may turn a tie; not many.
    assert (found[0].float().numpy() == expected[0]).mean() > 0.9 or np.abs(
        found[0].float().numpy() - expected[0]
    ).mean() < 0.01


@pytest.mark.parametrize("spec", [*INTEGERS, *OTHERS], ids=str)
def test_codecs(spec: QuantSpec) -> None:
    def run(x: Any) -> Any:
        params, _ = choose_params(
            *ranges(x, spec), spec, None if spec.granularity == "tensor" else 0
        )
        codes = encode(x, params)
        return codes, decode(codes, params), project(x, params), params.scale

    alike(run, X)
    alike(run, X[:0])


def test_affine_and_rounding() -> None:
    for convention in ("octavo", "tensorflow", "pytorch", "ipex"):
        for spec in (
            QuantSpec(dtype="uint8", symmetric=False),
            QuantSpec(dtype="int8", reduce_range=True),
        ):

            def run(
                x: Any, spec: QuantSpec = spec, convention: Any = convention
            ) -> Any:
                xp = array_namespace(x)
                params = affine_params(
                    xp.min(x), xp.max(x), spec, convention=convention
                )
                up = given(x > 0)
                return tuple(
                    dequantize(quantize(x, params, r), params)
                    for r in (stochastic(3), up)
                )

            alike(run, X)
    alike(
        lambda x: token_params(x, QuantSpec(dtype="int8", granularity="token")).scale, X
    )


def test_packing() -> None:
    for bits in (1, 2, 3, 4, 8):
        codes = (np.arange(21) % 2**bits).astype(np.uint8)
        alike(lambda c, bits=bits: pack(c, bits), codes)
        alike(
            lambda c, bits=bits: unpack(pack(c, bits), bits, 21, signed=bits > 1), codes
        )


@pytest.mark.parametrize(
    "rows",
    [
        Rows(),
        Rows((2, 3), (1, 2), (1, 0, 0, 1), (1, 1), 2),
        Rows((2, 2), (1, 1), (1, -1, 1, 1), (1, 1), 1, (2, 1)),
    ],
)
def test_features(rows: Rows) -> None:
    for kind in FEATURE_OBSERVERS.values():

        def run(x: Any, kind: Any = kind) -> Any:
            observer = kind(rows)
            observer.update(x)
            return observer.value

        alike(run, IMAGES, exact=False)


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("name", [p.name for p in octavo_calibrators()])
def test_calibrators(name: str, axis: int | None) -> None:
    if name == "token" and axis is not None:
        pytest.skip("one range for a whole tensor")
    part = next(p for p in octavo_calibrators() if p.name == name)

    def run(x: Any) -> Any:
        calibrator = part.build(part.config(kind=name), axis=axis)
        calibrator.update(x)
        calibrator.update(2 * x)
        return calibrator.range(QuantSpec(dtype="uint8", symmetric=False))

    alike(run, IMAGES, exact=False)


def test_bias_and_rotation() -> None:
    part = ALGORITHMS["rtn"]

    def run(bias: Any, matrix: Any, mean: Any) -> Any:
        found = part.build(part.config(kind="rtn")).quantize(
            matrix, INTEGERS[0], WeightContext()
        )
        return corrected_bias(bias, matrix, found, mean)

    alike(run, X[:, 0], X, SAMPLES[0], exact=False)
    alike(rotate, X, exact=False)
    alike(lambda x: rotate(x, 3), X[:, :96], exact=False)
