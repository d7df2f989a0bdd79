"""Weight algorithms that go on from each other: awq then gptq, gptq then autoround, ..."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo.core.calibration.features import FEATURE_OBSERVERS
from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.algorithm import WeightAlgorithm, WeightContext
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import SchemeError
from octavo.core.numerics.codec import encode
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.chains import check_chain
from octavo.core.quantizing.input_features import WeightRequest, feature_probes
from octavo.core.quantizing.weights import quantize_weight
from octavo.core.values.graph import Op, Weight
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import stored_form
from tests import tiny
from tests.arrays import each_kind

HOST = PluginHost(third_party=False)
GROUPS = QuantSpec(dtype="int3", granularity="group:16")


def layer() -> tuple[np.ndarray, np.ndarray]:
    """A weight with outliers, and the Gram matrix of inputs that lean on each other."""
    random = np.random.default_rng(0)
    weight = random.standard_t(4, size=(24, 64)).astype(np.float32)
    inputs = random.normal(size=(512, 64)) @ random.normal(size=(64, 64))
    inputs *= np.geomspace(0.2, 3.0, 64)
    return weight, (inputs.T @ inputs).astype(np.float32)


def built(kind: str, **options: Any) -> WeightAlgorithm:
    settings = HOST.read("algorithms", {"kind": kind, **options})
    algorithm: WeightAlgorithm = HOST.part("algorithms", kind).build(settings)
    return algorithm


def chained(
    kinds: tuple[str, ...], weight: Any, spec: QuantSpec, context: WeightContext
) -> QuantizedTensor:
    start: QuantizedTensor | None = None
    for kind in kinds:
        start = built(kind).quantize(weight, spec, replace(context, start=start))
    assert start is not None
    return start


def loss(found: QuantizedTensor, weight: np.ndarray, gram: np.ndarray) -> float:
    """tr(E G E^T), written out."""
    error = np.asarray(found.dequantize(), np.float64) - weight
    return float(np.einsum("oi,ij,oj->", error, gram.astype(np.float64), error))


def on_a_strange_grid(weight: np.ndarray, spec: QuantSpec) -> QuantizedTensor:
    """Rounded on scales that no algorithm would choose: each 1.7 of what the weight needs."""
    plain = built("rtn").quantize(weight, spec, WeightContext()).params
    strange = replace(plain, scale=plain.scale * np.float32(1.7))
    return QuantizedTensor(encode(weight, strange), strange)


@each_kind
@pytest.mark.parametrize("kind", ["gptq", "adaround"])
@pytest.mark.parametrize(
    "spec",
    [
        GROUPS,
        QuantSpec(dtype="uint4", symmetric=False, granularity="group:32"),
        QuantSpec(dtype="int4", granularity="channel"),
        QuantSpec(dtype="int8"),
    ],
    ids=str,
)
def test_what_refines_stays_on_the_grid_it_is_given(
    kind: str, spec: QuantSpec, make: Any
) -> None:
    weight, gram = layer()
    plain = on_a_strange_grid(weight, spec)
    params = replace(
        plain.params,
        scale=make(plain.params.scale),
        zero_point=make(plain.params.zero_point),
    )
    start = QuantizedTensor(make(plain.codes), params)
    context = WeightContext(gram=make(gram), count=512, start=start)
    found = built(kind).quantize(make(weight), spec, context)
    np.testing.assert_array_equal(found.params.scale, plain.params.scale)
    np.testing.assert_array_equal(found.params.zero_point, plain.params.zero_point)
    # It did something of its own there, too.
    assert loss(found, weight, gram) < loss(plain, weight, gram)


def test_autoround_learns_the_range_of_the_grid_it_is_given() -> None:
    """One short step from a grid that is 1.7 of its own ends near that one; with a grid that all
    rows share it stays there."""
    weight, gram = layer()
    plain = on_a_strange_grid(weight, GROUPS)
    given = WeightContext(gram=gram, count=512, start=plain)
    found = built("autoround", iterations=1, step=0.02).quantize(weight, GROUPS, given)
    ratio = found.params.scale / plain.params.scale
    assert (abs(ratio - 1) <= 0.0201).all()
    assert loss(found, weight, gram) < loss(plain, weight, gram)
    whole = QuantSpec(dtype="int8")
    shared = on_a_strange_grid(weight, whole)
    given = WeightContext(gram=gram, count=512, start=shared)
    found = built("autoround").quantize(weight, whole, given)
    assert float(found.params.scale) == float(shared.params.scale)
    assert loss(found, weight, gram) < loss(shared, weight, gram)


@pytest.mark.parametrize(
    "kinds",
    [
        ("awq", "gptq"),
        ("hqq", "gptq"),
        ("rtn", "gptq"),
        ("awq", "autoround"),
        ("gptq", "autoround"),
        ("awq", "gptq", "autoround"),
        ("gptq", "adaround"),
    ],
    ids="-".join,
)
def test_each_step_of_a_chain_loses_less(kinds: tuple[str, ...]) -> None:
    weight, gram = layer()
    context = WeightContext(gram=gram, count=512)
    losses = [
        loss(chained(kinds[: n + 1], weight, GROUPS, context), weight, gram)
        for n in range(len(kinds))
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.999 * losses[0]


def test_autoround_begins_with_the_codes_of_its_start() -> None:
    """After no useful step (a Gram matrix of nothing) the start's codes are what is left."""
    weight, gram = layer()
    start = built("gptq").quantize(weight, GROUPS, WeightContext(gram=gram))
    assert (start.codes != encode(weight, start.params)).any()
    nothing = WeightContext(gram=0 * gram, start=start)
    found = built("autoround").quantize(weight, GROUPS, nothing)
    np.testing.assert_array_equal(found.codes, start.codes)


def digits_layer() -> tuple[np.ndarray, np.ndarray]:
    """The second layer of a trained network, and the Gram matrix of what it reads."""
    net, x = tiny._fitted(), np.concatenate(tiny.calibration())
    inputs = np.maximum(x @ net.coefs_[0] + net.intercepts_[0], 0)
    weight = net.coefs_[1].T.astype(np.float32)
    return weight, (inputs.T @ inputs).astype(np.float32)


@pytest.mark.parametrize("dtype", ["int2", "uint2", "uint3"])
def test_chains_are_ahead_of_their_parts_on_a_trained_layer(dtype: str) -> None:
    weight, gram = digits_layer()
    spec = QuantSpec(dtype=dtype, symmetric=dtype[0] == "i", granularity="group:16")
    context = WeightContext(gram=gram, count=256)

    def lost(*kinds: str) -> float:
        return loss(chained(kinds, weight, spec, context), weight, gram)

    awq, gptq, rounded = lost("awq"), lost("gptq"), lost("autoround")
    assert lost("awq", "gptq") < 0.97 * min(awq, gptq)
    assert lost("awq", "gptq", "autoround") < 0.97 * min(awq, gptq, rounded)


def test_awq_then_gptq_is_behind_neither_of_them() -> None:
    weight, gram = layer()
    context = WeightContext(gram=gram, count=512)
    awq, gptq, both = (
        loss(chained(kinds, weight, GROUPS, context), weight, gram)
        for kinds in (("awq",), ("gptq",), ("awq", "gptq"))
    )
    assert both < gptq
    assert both < 0.98 * awq


def scheme(*kinds: str) -> OpScheme:
    first, *others = (PartChoice(kind=kind) for kind in kinds)
    return OpScheme(
        mode="weight_only", weight=GROUPS, algorithm=first, refined_by=tuple(others)
    )


def test_a_chain_that_starts_anew_is_refused() -> None:
    check_chain(scheme("awq", "gptq", "autoround"), HOST)
    with pytest.raises(
        SchemeError, match=r"gptq -> rtn: rtn cannot go on from what gptq"
    ) as e:
        check_chain(scheme("gptq", "rtn"), HOST)
    assert "gptq" in str(e.value).split("follow that can:")[1]


def test_a_chain_is_part_of_a_scheme_and_no_chain_is_not() -> None:
    one, both = scheme("awq"), scheme("awq", "gptq")
    assert str(both) == "weight_only w:int3/group:16 awq -> gptq"
    assert both != one
    assert "refined_by" not in one.model_dump()
    assert OpScheme.model_validate(both.model_dump()) == both
    assert stored_form(both).refined_by == both.refined_by
    recipe = Recipe({"a": both}, backend="numpy")
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.digest != Recipe({"a": one}, backend="numpy").digest
    # What a scheme of one algorithm was called before there were chains.
    assert Recipe({"a": one}, backend="numpy").digest == "b16b7efedf2c1b3d"


def grouped_conv() -> tuple[Op, np.ndarray, np.ndarray]:
    """Four groups whose weights and inputs differ in size by orders of magnitude."""
    random = np.random.default_rng(0)
    sizes = np.repeat([0.01, 1.0, 0.1, 0.5], 4)[:, None, None, None]
    weight = (random.normal(size=(16, 8, 2, 2)) * sizes).astype(np.float32)
    loud = np.repeat([3.0, 1.0, 0.2, 1.0], 8)[:, None, None]
    mixed = random.normal(size=(6, 32, 5, 5)) @ random.normal(size=(5, 5))
    held = Weight("w", weight.shape)
    op = Op("c", "conv", ("x",), ("y",), held, attributes={"groups": 4})
    return op, weight, (mixed * loud).astype(np.float32)


def of_grouped_conv(spec: QuantSpec, *kinds: str) -> QuantizedTensor:
    op, weight, x = grouped_conv()
    first, *others = (PartChoice(kind=kind) for kind in kinds)
    asked = OpScheme(
        mode="weight_only", weight=spec, algorithm=first, refined_by=tuple(others)
    )
    needs = frozenset({"gram"})
    seen = Statistics(
        feature_probes(op, needs),
        lambda p: FEATURE_OBSERVERS[p.calibrator.kind](p.rows),
    )
    seen.update("x", x)
    request = WeightRequest(op, (op,), asked, needs, lambda _op, _value: seen)
    return quantize_weight(request, weight, HOST)


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(dtype="nf4", granularity="group:16", scale_dtype="uint8"),
        QuantSpec(dtype="nvfp4", granularity="group:16"),
        QuantSpec(dtype="int4", granularity="group:8", scale_dtype="fp8_e4m3fn"),
        QuantSpec(dtype="nf4"),
        QuantSpec(dtype="fp8_e4m3fn"),
        QuantSpec(dtype="uint4", symmetric=False, scale_dtype="float16"),
        QuantSpec(dtype="int4", scale_dtype="uint8"),
        QuantSpec(dtype="int4", granularity="group:16"),
        QuantSpec(dtype="int4", granularity="channel"),
    ],
    ids=str,
)
def test_groups_of_a_convolution_chain_each_with_its_own_inputs(
    spec: QuantSpec,
) -> None:
    """The second algorithm keeps the first one's grid for all four groups, with the second level of
    its scales, and each group's error is no larger."""
    op, weight, x = grouped_conv()
    start = of_grouped_conv(spec, "awq")
    found = of_grouped_conv(spec, "awq", "gptq")
    assert found.shape == weight.shape
    np.testing.assert_array_equal(found.params.scale, start.params.scale)
    np.testing.assert_array_equal(found.params.zero_point, start.params.zero_point)
    assert (found.extra is None) == (start.extra is None)
    for name, held in (start.extra or {}).items():
        assert found.extra is not None
        np.testing.assert_array_equal(found.extra[name], held)
    before, after = (_losses_by_group(q, weight, x) for q in (start, found))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()
    assert op.attributes["groups"] == 4


def _losses_by_group(
    found: QuantizedTensor, weight: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """Squared error of each group's outputs, by the patches that its kernel meets."""
    error = np.asarray(found.dequantize(), np.float64) - weight
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(2, 3))
    losses = []
    for group in range(4):
        own = patches[:, group * 8 : (group + 1) * 8]
        rows = error[group * 4 : (group + 1) * 4]
        losses.append((np.einsum("nchwij,ocij->nohw", own, rows) ** 2).sum())
    return np.array(losses)


def test_a_repair_comes_last() -> None:
    spec = QuantSpec(dtype="int4", granularity="channel")
    op = Op("m", "linear", ("x",), ("y",), Weight("w", (24, 64)))
    weight, _ = layer()
    seen = Statistics(
        feature_probes(op, ("gram",)),
        lambda p: FEATURE_OBSERVERS[p.calibrator.kind](p.rows),
    )
    seen.update("x", np.random.default_rng(0).normal(size=(99, 64)).astype(np.float32))

    def made(*kinds: str) -> QuantizedTensor:
        first, *others = (PartChoice(kind=kind) for kind in kinds)
        asked = OpScheme(
            mode="weight_only", weight=spec, algorithm=first, refined_by=tuple(others)
        )
        needs = frozenset({"gram"})
        request = WeightRequest(op, (op,), asked, needs, lambda _op, _value: seen)
        return quantize_weight(request, weight, HOST)

    repaired = made("gptq", "low_rank")
    assert repaired.repair is not None
    np.testing.assert_array_equal(repaired.codes, made("gptq").codes)
    with pytest.raises(SchemeError, match="put it last"):
        made("low_rank", "gptq")
