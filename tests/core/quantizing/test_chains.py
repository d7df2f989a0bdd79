"""Weight algorithms that go on from each other: awq then gptq, gptq then autoround, ..."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from octavo.core.contract.algorithm import WeightAlgorithm, WeightContext
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import SchemeError
from octavo.core.numerics.codec import encode
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.chains import check_chain
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import stored_form
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
@pytest.mark.parametrize("kind", ["gptq", "autoround", "adaround"])
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
