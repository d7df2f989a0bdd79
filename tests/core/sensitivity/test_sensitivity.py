"""Sensitivities of a small NumPy network, against the same quantities computed by hand."""

import json

import numpy as np
import pytest

from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.strategy import RecipeSensitivity
from octavo.core.errors import ConfigError, DataError, StoreError
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT
from tests.helpers import as_opened

HOST = PluginHost(third_party=False)


@pytest.fixture(scope="module")
def batches():
    random = np.random.default_rng(0)
    return [
        (
            random.normal(0, 1, (16, 8)).astype(np.float32)
            * np.linspace(0.1, 4, 8, dtype=np.float32),
        )
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def opened():
    from octavo.adapters.numpy.graph import Builder

    random = np.random.default_rng(1)
    b = Builder()
    x = b.input("x", (None, 8))
    y = b.Relu(
        b.Gemm(
            x,
            random.normal(0, 1, (8, 12)).astype(np.float32),
            np.zeros(12, np.float32),
            name="first",
        )
    )
    y = b.Gemm(
        y,
        random.normal(0, 1, (12, 3)).astype(np.float32),
        np.zeros(3, np.float32),
        name="second",
    )
    session = HOST.adapters()["numpy"].build().open(b.graph(y))
    return as_opened(session)


@pytest.fixture
def service(opened, batches):
    space = build_space(opened)
    realizer = Realizer(opened, space, HOST)
    realizer.calibrate(batches)
    return SensitivityService(opened, realizer, batches)


def scheme_of(service, unit, mode):
    return next(
        s for s in service.realizer.space.by_name[unit].choices if s.mode == mode
    )


def test_it_is_what_strategies_ask_for(service):
    assert isinstance(service, RecipeSensitivity)


def test_weight_error_is_the_share_of_the_output_that_rounding_destroys(
    service, opened, batches
):
    unit = service.realizer.space.tunable[0]
    scheme = scheme_of(service, unit.name, "dynamic")
    op = opened.view.by_name[unit.ops[0]]
    weight = np.asarray(opened.session.tensor(op.weight.name)).astype(np.float64)
    given = service.realizer.parameters(Recipe({op.name: scheme}, (), "numpy"))[
        op.name
    ].weight
    rounded = np.asarray(given.dequantize()).astype(np.float64)
    if op.weight.channel_axis == 1:
        weight, rounded = weight.T, rounded.T
    x = np.concatenate([b[0] for b in batches]).astype(np.float64)
    lost = np.square(x @ (weight - rounded).T).sum() / len(x)
    step = (x.max() - x.min()) / (2**scheme.input.bits - 1)
    lost += step**2 / 12 * np.square(weight).sum()
    expected = lost / (np.square(x @ weight.T).sum() / len(x))
    assert service("weight_error", [(unit.name, scheme)])[0] == pytest.approx(
        expected, rel=1e-3
    )


def kl(y, y0):
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (y0, y))
    return (p * np.log(p / q)).sum(axis=1).mean()


def share_of_variance(y, y0):
    return (np.square(y - y0).mean(axis=0) / y0.var(axis=0)).mean()


@pytest.mark.parametrize(
    ("asked", "distance"), [("kl", kl), ("variance", share_of_variance)]
)
def test_output_distance_is_measured_on_the_model_with_one_unit_quantized(
    service, opened, batches, asked, distance
):
    service = SensitivityService(opened, service.realizer, batches, output_metric=asked)
    unit = service.realizer.space.tunable[-1]
    scheme = scheme_of(service, unit.name, "static")
    candidate = service.realizer.candidate(
        Recipe(dict.fromkeys(unit.ops, scheme), (), "numpy")
    )
    reference = opened.session.reference()
    y = np.concatenate([candidate.run(batch)[0] for batch in batches])
    y0 = np.concatenate([reference.run(batch)[0] for batch in batches])
    expected = distance(y.astype(np.float64), y0.astype(np.float64))
    found = service("output_distance", [(unit.name, scheme), (unit.name, FLOAT)])
    assert found == pytest.approx([expected, 0.0], rel=1e-3)
    assert found[0] > 0


@pytest.mark.parametrize("kind", ["weight_error", "output_distance", "hessian"])
def test_more_bits_hurt_less(service, kind):
    for unit in service.realizer.space.tunable:
        eight = scheme_of(service, unit.name, "dynamic")
        losses = service(kind, [(unit.name, eight), (unit.name, FLOAT)])
        assert losses[0] > losses[1] == 0.0


def test_scores_are_computed_once_and_kept_in_a_file(
    service, opened, batches, tmp_path
):
    pairs = [(u.name, s) for u in service.realizer.space.tunable for s in u.choices]
    first = service("output_distance", pairs)
    ran = service.batches_run
    assert service("output_distance", pairs) == first
    assert service.batches_run == ran
    service.save(tmp_path / "sensitivities.json")
    again = SensitivityService(
        opened, service.realizer, batches, tmp_path / "sensitivities.json"
    )
    assert again("output_distance", pairs) == first
    assert again.batches_run == 0


def test_a_file_of_other_batches_is_refused(service, opened, batches, tmp_path):
    path = tmp_path / "sensitivities.json"
    service.save(path)
    with pytest.raises(StoreError, match="other batches"):
        SensitivityService(opened, service.realizer, batches[:1], path)
    path.write_text(json.dumps([1]))
    with pytest.raises(StoreError, match="holds no sensitivities"):
        SensitivityService(opened, service.realizer, batches, path)


def test_whole_recipes_are_compared_without_the_score(service):
    space = service.realizer.space
    whole = space.recipe(space.first())
    float_, all_ = service.distances([space.recipe({}), whole])
    assert float_ == pytest.approx(0.0, abs=1e-9)
    assert all_ > 0


def test_wrong_questions_are_refused(service, opened):
    with pytest.raises(ConfigError, match="no sensitivity 'magic'"):
        service("magic", [])
    with pytest.raises(ConfigError, match="no unit 'nowhere'"):
        service("weight_error", [("nowhere", FLOAT)])
    unit = service.realizer.space.tunable[0]
    with pytest.raises(DataError, match="calibration batches"):
        SensitivityService(opened, service.realizer, ())(
            "output_distance", [(unit.name, unit.choices[0])]
        )


def test_a_probe_that_raises_is_told_once_and_ends_nothing(opened, batches, tmp_path):
    notes = []
    realizer = Realizer(opened, build_space(opened), HOST)
    realizer.calibrate(batches)
    service = SensitivityService(opened, realizer, batches, note=notes.append)
    first, second = realizer.space.tunable
    broken, whole = scheme_of(service, first.name, "dynamic"), realizer.candidate

    def candidate(recipe, **named):
        if not recipe[first.ops[0]].is_float:
            raise MemoryError("no room for this one")
        return whole(recipe, **named)

    realizer.candidate = candidate
    asked = [(first.name, broken), (second.name, broken), (first.name, broken)]
    losses = service("output_distance", asked)
    assert losses[0] == losses[2] == np.inf
    assert np.isfinite(losses[1])
    (failed,) = [note for note in notes if note.startswith("sensitivity")]
    assert "no room for this one" in failed
    assert first.name in failed
    # What failed may work the next time: it is not kept.
    service.save(tmp_path / "scores.json")
    again = SensitivityService(opened, realizer, batches, tmp_path / "scores.json")
    realizer.candidate = whole
    assert np.isfinite(again("output_distance", asked)).all()
    assert again("output_distance", asked)[1] == losses[1]


def test_a_search_goes_on_where_nothing_can_be_found_out(opened, batches):
    from octavo.core.contract.strategy import Problem
    from octavo.strategies.beliefs.losses import pair_losses

    notes = []
    realizer = Realizer(opened, build_space(opened), HOST)
    realizer.calibrate(batches)
    service = SensitivityService(opened, realizer, batches, note=notes.append)
    pairs = [(u, scheme_of(service, u.name, "dynamic")) for u in realizer.space.tunable]
    expected = service("weight_error", [(u.name, s) for u, s in pairs])

    def fail(recipe, **_):
        raise RuntimeError("probes do not run here")

    realizer.candidate = fail
    assert (
        pair_losses(
            Problem(realizer.space, sensitivity=service), "output_distance", pairs
        )
        == expected
    )
    realizer.parameters = fail
    fresh = SensitivityService(opened, realizer, batches, note=notes.append)
    losses = pair_losses(
        Problem(realizer.space, sensitivity=fresh), "output_distance", pairs
    )
    assert np.isfinite(losses).all()
    failed = [note for note in notes if note.startswith("sensitivity")]
    assert failed
    assert all("probes do not run here" in note for note in failed)
