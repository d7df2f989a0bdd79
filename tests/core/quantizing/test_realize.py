"""From a recipe to numbers: what is observed, what algorithms are given, what is done once, what is
refused."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import numpy as np
import pytest

from octavo.core.calibration.features import Gram
from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.adapter import Opened
from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.calibrator import Probe
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, DataError, NonFiniteWeight, SchemeError
from octavo.core.numerics.affine import affine_params
from octavo.core.quantizing.algorithms.gptq import Gptq, GptqConfig
from octavo.core.quantizing.realize import Realizer
from octavo.core.tuning import quantize
from octavo.core.values.graph import Group, ModelView, Op, Weight
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from octavo.core.values.topology import shared_scales, values_between

torch = pytest.importorskip("torch")
nn = torch.nn

HOST = PluginHost(third_party=False)
INT8, INT4 = (
    QuantSpec(dtype="int8", granularity="channel"),
    QuantSpec(dtype="int4", granularity="channel"),
)
ACTIVATION = QuantSpec(dtype="uint8", symmetric=False)
STATIC = OpScheme(mode="static", weight=INT8, input=ACTIVATION)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)
    ).eval()


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(8, 3, 1),
    ).eval()


def batches(*shape: int) -> list[tuple[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(*shape, generator=generator),) for _ in range(3)]


def realizer(
    model: nn.Module,
    data: Any,
    *schemes: OpScheme,
    calibrate: bool = True,
    **settings: Any,
) -> Realizer:
    session = HOST.adapters()["torch"].build().open(model, data[0])
    view = session.describe()
    units = tuple(
        Unit(o.name, o.type, (o.name,), (*schemes, FLOAT))
        for o in view.ops
        if o.weight is not None and not o.out_of_reach
    )
    made = Realizer(
        Opened("torch", session, view, session.capability()),
        TuningSpace("torch", units),
        HOST,
        **settings,
    )
    if calibrate:
        made.calibrate(data)
    return made


def all_of(made: Realizer, scheme: OpScheme) -> Recipe:
    return Recipe({u.name: scheme for u in made.space.tunable}, (), "torch")


def test_gptq_is_given_the_gram_matrix_of_its_own_input() -> None:
    model, data = net(), batches(32, 8)
    scheme = STATIC.variant(weight=INT4, algorithm=PartChoice(kind="gptq"))
    made = realizer(model, data, STATIC, scheme)
    found = made.parameters(all_of(made, scheme))
    x = torch.cat([b[0] for b in data])
    for op, layer in zip(
        (u.name for u in made.space.tunable),
        (model[0], model[2], model[4]),
        strict=True,
    ):
        inputs = x if layer is model[0] else model[: 2 if layer is model[2] else 4](x)
        assert isinstance(layer, nn.Linear)
        expected = Gptq(GptqConfig()).quantize(
            layer.weight.detach(),
            INT4,
            WeightContext(gram=(inputs.T @ inputs).detach()),
        )
        weight = found[op].weight
        assert weight is not None
        assert (weight.codes == expected.codes).float().mean() > 0.98
    assert made.observe_passes == 1


def test_gram_matrices_that_do_not_fit_are_observed_a_page_at_a_time() -> None:
    model, data = net(), batches(32, 8)
    scheme = OpScheme(
        mode="weight_only",
        weight=QuantSpec(dtype="int4", granularity="channel"),
        algorithm=PartChoice(kind="gptq"),
    )
    whole, little = (
        realizer(model, data, scheme),
        realizer(model, data, scheme, gram_bytes=4 * 16**2),
    )
    assert little.statistics is not None
    assert [o.value.shape for o in little.statistics.observers.values()] == [(1, 8, 8)]  # type: ignore[attr-defined]
    expected = whole.parameters(all_of(whole, scheme))
    alive = weakref.WeakSet[Gram]()
    make = little.observation.make
    little.observation.make = lambda probe: added(alive, make(probe))  # type: ignore[method-assign]
    for name, parameters in little.parameters(all_of(little, scheme)).items():
        assert parameters.weight is not None
        assert expected[name].weight is not None
        assert bool((parameters.weight.codes == expected[name].weight.codes).all())
    assert (whole.observe_passes, little.observe_passes) == (1, 3)
    assert len(alive) == 1
    little.parameters(all_of(little, scheme))
    assert little.observe_passes == 3


@pytest.mark.parametrize(("megabytes", "passes"), [(0, 3), (1, 1)])
def test_the_memory_of_gram_matrices_is_a_setting(
    megabytes: float, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Realizer] = []
    monkeypatch.setattr(
        quantize,
        "Realizer",
        lambda *given, **named: made.append(Realizer(*given, **named)) or made[0],
    )
    weight = {"dtype": "int4", "granularity": "channel"}
    rule = {
        "types": "linear",
        "mode": "weight_only",
        "weight": weight,
        "algorithm": "gptq",
    }
    quantize.quantize_model(
        net(), {"gram_megabytes": megabytes, "rules": [rule]}, batches(32, 8), host=HOST
    )
    assert made[0].observe_passes == passes


def added(alive: weakref.WeakSet[Gram], observer: Any) -> Any:
    alive.add(observer)
    return observer


def test_a_generator_that_is_read_once_keeps_all_its_gram_matrices() -> None:
    model, data = net(), batches(32, 8)
    scheme = OpScheme(
        mode="weight_only", weight=INT4, algorithm=PartChoice(kind="gptq")
    )
    made = realizer(model, data, scheme, calibrate=False, gram_bytes=0)
    made.calibrate(iter(data))
    made.parameters(all_of(made, scheme))
    assert made.observe_passes == 1


def test_pages_of_a_rescaled_model_see_what_it_sees() -> None:
    torch.manual_seed(0)
    model, data = (
        nn.Sequential(
            nn.LayerNorm(8),
            nn.Linear(8, 16),
            nn.Tanh(),
            nn.LayerNorm(16),
            nn.Linear(16, 4),
        ).eval(),
        batches(32, 8),
    )
    scheme = OpScheme(
        mode="weight_only", weight=INT4, algorithm=PartChoice(kind="gptq")
    )
    transforms = (PartChoice(kind="smoothquant"),)
    found = []
    for limit in (2**20, 0):
        plain = realizer(model, data, scheme, calibrate=False)
        made = Realizer(
            plain.opened,
            TuningSpace("torch", plain.space.units, ((), transforms)),
            HOST,
            gram_bytes=limit,
        )
        made.calibrate(data)
        found.append(
            made.parameters(Recipe(all_of(made, scheme).schemes, transforms, "torch"))
        )
    for one, other in zip(found[0].values(), found[1].values(), strict=True):
        assert one.weight is not None
        assert other.weight is not None
        assert float((one.weight.codes == other.weight.codes).float().mean()) > 0.99
        torch.testing.assert_close(one.weight.params.scale, other.weight.params.scale)


def test_convolutions_are_seen_as_patches_group_by_group() -> None:
    model, data = convolutions(), batches(4, 2, 9, 9)
    scheme = STATIC.variant(weight=INT4, algorithm=PartChoice(kind="gptq"))
    for granularity in ("channel", "tensor"):
        asked = scheme.variant(weight=QuantSpec(dtype="int4", granularity=granularity))
        made = realizer(model, data, asked)
        parameters = made.parameters(all_of(made, asked))
        for name, layer, before in zip(
            (u.name for u in made.space.tunable),
            (model[0], model[2], model[4]),
            (0, 2, 4),
            strict=True,
        ):
            weight = parameters[name].weight
            assert weight is not None
            assert isinstance(layer, nn.Conv2d)
            assert weight.shape == tuple(layer.weight.shape)
            inputs = model[:before](data[0][0]) if before else data[0][0]
            plain = all_of(made, asked.variant(algorithm=PartChoice(kind="rtn")))
            rtn = made.parameters(plain)[name].weight
            assert rtn is not None

            def error(
                numbers: torch.Tensor,
                layer: nn.Conv2d = layer,
                inputs: torch.Tensor = inputs,
            ) -> float:
                exact = nn.functional.conv2d(inputs, layer.weight, groups=layer.groups)
                return float(
                    (
                        (
                            nn.functional.conv2d(inputs, numbers, groups=layer.groups)
                            - exact
                        )
                        ** 2
                    )
                    .mean()
                    .detach()
                )

            assert error(weight.dequantize()) < error(rtn.dequantize())


def test_each_op_has_its_own_algorithm_and_calibrator() -> None:
    percentile = PartChoice(kind="percentile", options=(("percentile", 90.0),))
    clipped = STATIC.variant(
        calibrator=percentile,
        algorithm=PartChoice(kind="rtn", options=(("clip", "mse"),)),
    )
    made = realizer(net(), batches(32, 8), STATIC, clipped)
    first, second, _ = (u.name for u in made.space.tunable)
    found = made.parameters(Recipe({first: STATIC, second: clipped}, (), "torch"))
    both = made.parameters(all_of(made, STATIC))
    assert found[first].weight is both[first].weight
    assert found[second].weight is not both[second].weight
    narrow, wide = found[second].inputs[0], both[second].inputs[0]
    assert narrow is not None
    assert wide is not None
    assert float(narrow.scale) < float(wide.scale)


def test_a_weight_is_quantized_once_per_scheme() -> None:
    made = realizer(net(), batches(16, 8), STATIC, STATIC.variant(weight=INT4))
    one, other = (
        made.parameters(all_of(made, STATIC)),
        made.parameters(all_of(made, STATIC)),
    )
    assert all(one[name].weight is other[name].weight for name in one)
    assert made.weights_quantized == 3
    made.parameters(all_of(made, STATIC.variant(weight=INT4)))
    assert made.weights_quantized == 6
    assert made.observe_passes == 1


def test_tied_weights_are_quantized_once_and_for_both_inputs() -> None:
    model = net()
    model.append(nn.Linear(4, 16, bias=False))
    model.append(nn.Linear(16, 16))
    model[6].weight = model[2].weight
    data = batches(16, 8)
    scheme = STATIC.variant(weight=INT4, algorithm=PartChoice(kind="gptq"))
    made = realizer(model, data, scheme)
    tied = [
        o.name
        for o in made.opened.view.ops
        if o.weight is not None and o.weight.shared_with
    ]
    found = made.parameters(all_of(made, scheme))
    assert len(tied) == 2
    assert found[tied[0]].weight is found[tied[1]].weight
    assert made.weights_quantized == len(made.space.tunable) - 1
    x = torch.cat([b[0] for b in data])
    inputs = torch.cat([model[:2](x), model[:6](x)]).detach()
    expected = Gptq(GptqConfig()).quantize(
        model[2].weight.detach(), INT4, WeightContext(gram=inputs.T @ inputs)
    )
    weight = found[tied[0]].weight
    assert weight is not None
    assert (weight.codes == expected.codes).float().mean() > 0.98


def test_bias_correction_reaches_the_parameters() -> None:
    model, data = net(), batches(64, 8)
    rough = QuantSpec(dtype="int2", granularity="channel")
    scheme = STATIC.variant(
        weight=rough,
        algorithm=PartChoice(kind="rtn", options=(("bias_correction", True),)),
    )
    made = realizer(model, data, scheme)
    found = made.parameters(all_of(made, scheme))
    name = made.space.tunable[1].name
    weight, layer = found[name].weight, model[2]
    assert isinstance(layer, nn.Linear)
    assert weight is not None
    mean = model[:2](torch.cat([b[0] for b in data])).mean(0)
    expected = layer.bias + (layer.weight - weight.dequantize()) @ mean
    torch.testing.assert_close(
        torch.as_tensor(found[name].bias), expected.detach(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_stop_before_the_first_trial(bad: float) -> None:
    model, data = net(), batches(4, 8)
    with torch.no_grad():
        model[2].weight[3, 1] = bad
    made = None
    with pytest.raises(NonFiniteWeight, match=r"2\.weight.*float") as caught:
        made = realizer(model, data, STATIC)
    assert made is None
    assert "NaN or Inf" in str(caught.value)


def test_or_leave_their_op_in_float_and_say_so() -> None:
    model, data = net(), batches(4, 8)
    with torch.no_grad():
        model[4].weight[0, 0] = float("inf")
    made = realizer(model, data, STATIC, non_finite="float")
    recipe = all_of(made, STATIC)
    candidate = made.candidate(recipe)
    bad = made.space.tunable[2].name
    assert candidate.ledger[bad].applied == FLOAT
    assert candidate.ledger[bad].requested == STATIC
    assert "NaN or Inf" in candidate.ledger[bad].reason
    assert candidate.recipe == recipe
    assert candidate.ledger[made.space.tunable[0].name].honoured


def test_what_an_adapter_made_is_not_changed_from_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = net(), batches(4, 8)
    with torch.no_grad():
        model[4].weight[0, 0] = float("inf")
    made = realizer(model, data, STATIC, non_finite="float")
    session, given = made.opened.session, []
    apply = session.apply

    def noted(*arguments: Any) -> Any:
        candidate = apply(*arguments)
        given.append((candidate, candidate.recipe, dict(candidate.ledger)))
        return candidate

    monkeypatch.setattr(session, "apply", noted)
    candidate = made.candidate(all_of(made, STATIC))
    ((own, recipe, ledger),) = given
    assert (own.recipe, own.ledger) == (recipe, ledger)
    assert candidate.recipe != recipe
    assert set(candidate.ledger) > set(ledger)
    assert candidate.native is own.native


def test_what_is_missing_is_named() -> None:
    data = batches(4, 8)
    scheme = OpScheme(
        mode="weight_only", weight=INT4, algorithm=PartChoice(kind="gptq")
    )
    made = realizer(net(), data, scheme, calibrate=False)
    with pytest.raises(SchemeError, match=r"gptq needs the Gram matrix.*calibration"):
        made.parameters(all_of(made, scheme))
    with pytest.raises(SchemeError, match="names op 'nobody'"):
        made.parameters(Recipe({"nobody": STATIC}))
    with pytest.raises(DataError, match="calibration data is empty"):
        made.calibrate([])
    static = realizer(net(), data, scheme)
    with pytest.raises(DataError, match="was not observed"):
        static.parameters(all_of(static, STATIC))
    with pytest.raises(
        ConfigError, match="unknown setting 'dampening'; did you mean 'damping'"
    ):
        static.parameters(
            all_of(
                static,
                scheme.variant(
                    algorithm=PartChoice(kind="gptq", options=(("dampening", 0.1),))
                ),
            )
        )


def test_bad_batches_are_named() -> None:
    data = batches(4, 8)
    data[1][0][2, 3] = float("nan")
    with pytest.raises(DataError, match="not finite in calibration batch 1"):
        realizer(net(), data, STATIC)


def test_constant_activations_are_widened_with_a_remark(
    logged: pytest.LogCaptureFixture,
) -> None:
    data = [(torch.zeros(4, 8),)]
    made = realizer(net(), data, STATIC)
    name = made.space.tunable[0].name
    found = made.parameters(Recipe({name: STATIC}, (), "torch"))
    assert "was constant" in logged.text
    params = found[name].inputs[0]
    assert params is not None
    assert float(params.scale) == pytest.approx(1 / 255)


def test_static_consumers_tell_their_producer() -> None:
    made = realizer(
        net(), batches(16, 8), STATIC, STATIC.variant(input=QuantSpec(dtype="int8"))
    )
    first, second, third = (u.name for u in made.space.tunable)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = made.parameters(Recipe({first: STATIC, second: STATIC}, (), "torch"))
    assert found[first].outputs[0] is found[second].inputs[0]
    assert found[second].outputs[0] is None
    assert third not in found


def view() -> ModelView:
    weight = Weight("w", (4, 4))
    ops = (
        Op("a", "conv", ("x",), ("a",), weight),
        Op("r", "relu", ("a",), ("r",)),
        Op("b", "conv", ("r",), ("b",), weight),
        Op("c", "add", ("b", "x"), ("c",)),
        Op("d", "concat", ("c", "y"), ("d",)),
        Op("e", "add", ("y", "z"), ("e",)),
    )
    groups = (
        Group("scale", "rescale", ("b",), "a", 4, "r"),
        Group("inside", "rescale", ("b",), "", 4, "r"),
        Group("add", "scale", ("c",)),
        Group("concat", "scale", ("d",)),
        Group("other", "scale", ("e",)),
    )
    return ModelView(ops, groups)


def test_values_between_the_ends_of_a_group() -> None:
    model = view()
    assert values_between(model, model.groups[0]) == {"a", "r"}
    assert values_between(model, model.groups[1]) == {"r"}


def test_shared_scales_join_overlapping_groups() -> None:
    found = shared_scales(view())
    assert found["b"] == found["x"] == ("b", "x")
    assert found["c"] == found["y"] == found["z"] == ("c", "y", "z")


def test_statistics_merge_as_one() -> None:
    probes = [
        Probe("x", PartChoice(kind="minmax")),
        Probe("x", PartChoice(kind="minmax"), -1),
    ]

    def make(probe: Probe) -> Any:
        return HOST.part("calibrators", "minmax").build(
            HOST.read("calibrators", "minmax"), axis=probe.axis
        )

    whole, one, other = (Statistics(probes, make) for _ in range(3))
    for i in range(4):
        x = np.random.default_rng(i).normal(size=(5, 3)).astype(np.float32)
        whole.update("x", x)
        (one if i % 2 else other).update("x", x)
    one.merge(other)
    assert one.seen == whole.seen
    spec = QuantSpec(dtype="int8")
    for axis in (None, -1):
        for a, b in zip(
            one.range("x", PartChoice(kind="minmax"), spec, axis),
            whole.range("x", PartChoice(kind="minmax"), spec, axis),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    low, high = whole.range("x", PartChoice(kind="minmax"), spec, -1)
    assert affine_params(
        low, high, QuantSpec(dtype="int8", granularity="channel"), -1
    ).scale.shape == (3,)
    with pytest.raises(DataError, match="did you mean"):
        whole.range("xx", PartChoice(kind="minmax"), spec)


def test_integer_inputs_are_not_asked_for_finiteness() -> None:
    statistics = Statistics((), lambda probe: pytest.fail("nothing to build"))
    statistics.update("tokens", torch.arange(5))
    statistics.update("tokens", np.arange(5))
    assert statistics.seen == {"tokens": 2}
