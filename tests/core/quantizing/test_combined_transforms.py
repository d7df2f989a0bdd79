"""Several transforms on one model: the function stays in any order, on every backend, and everybody
takes what calibration saw of the values that he meets."""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.calibration.calibrators.minmax import MinMax, MinMaxConfig
from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.calibrator import Probe
from octavo.core.contract.plugins import PluginHost
from octavo.core.numerics.arrays import to_numpy
from octavo.core.quantizing.activation_ranges import ActivationRanges
from octavo.core.quantizing.realize import Realizer
from octavo.core.quantizing.rescaled import Prepared
from octavo.core.quantizing.transforms.base import channel_energy, links
from octavo.core.sensitivity.op_errors import OpErrors
from octavo.core.values.graph import Group, ModelView, Op
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, MINMAX, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from octavo.core.values.topology import scale_sharers, shared_scales
from tests.helpers import opened_on, opened_torch

from .test_transforms import Forked, Outsider

torch = pytest.importorskip("torch")
nn = torch.nn

HOST = PluginHost(third_party=False)
KINDS = sorted(HOST.parts("transforms"))
INT8 = QuantSpec(dtype="int8", granularity="channel")
STATIC = OpScheme(
    mode="static", weight=INT8, input=QuantSpec(dtype="uint8", symmetric=False)
)


class Mixed(nn.Module):
    """What each transform finds something in: convolutions one behind the other, a norm whose
    output a linear layer and a sum read, a GELU before a linear layer, two linear layers in a
    row; with channels of very different size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3)
        self.norm, self.wide = nn.LayerNorm(16), nn.Linear(16, 32)
        self.narrow, self.middle = nn.Linear(32, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 5)
        with torch.no_grad():
            self.first.weight *= torch.logspace(-1, 1, 8)[:, None, None, None]
            self.norm.weight[::5] *= 20
            self.norm.bias[::3] += 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x)).flatten(2).transpose(1, 2)
        x = self.norm(x)
        x = x + self.narrow(nn.functional.gelu(self.wide(x)))
        return self.last(self.middle(x))


@lru_cache(3)
def made(backend: str) -> Realizer:
    """A realizer whose space holds every pair of transforms in both orders."""
    net, data = Mixed().eval(), batches()
    with TemporaryDirectory() as folder:
        opened = opened_on(backend, net, data[0], Path(folder))
    view, capability = opened.view, opened.capability
    units = tuple(
        Unit(o.name, o.type, (o.name,), (static, FLOAT))
        for o in view.ops
        for static in capability.for_op(o)
        if (static.mode, static.weight, static.input) == ("static", INT8, STATIC.input)
    )
    pairs = [tuple(PartChoice(kind=k) for k in pair) for pair in permutations(KINDS, 2)]
    space = TuningSpace(backend, units, ((), *pairs))
    found = Realizer(opened, space, HOST)
    found.calibrate(data)
    return found


def batches() -> list[tuple[np.ndarray]]:
    random = np.random.default_rng(1)
    return [(random.normal(size=(2, 3, 8, 8)).astype(np.float32),) for _ in range(2)]


@lru_cache(1)
def expected() -> np.ndarray:
    with torch.no_grad():
        (x,) = batches()[0]
        found: np.ndarray = Mixed().eval()(torch.from_numpy(x)).numpy()
    return found


@pytest.mark.parametrize("backend", ["torch", "onnx", "numpy"])
@pytest.mark.parametrize("pair", list(permutations(KINDS, 2)), ids="-".join)
def test_a_pair_of_transforms_leaves_the_function(
    pair: tuple[str, str], backend: str
) -> None:
    transforms = tuple(PartChoice(kind=k) for k in pair)
    realizer = made(backend)
    state = realizer.prepared(transforms)
    assert state.before is realizer.prepared(transforms[:1])
    assert state.changes
    found = state.session.reference().run(batches()[0])[0]
    np.testing.assert_allclose(
        found, expected(), rtol=1e-4, atol=1e-4 * np.abs(expected()).max()
    )


@pytest.mark.parametrize("backend", ["torch", "onnx", "numpy"])
@pytest.mark.parametrize(
    "pair",
    [
        ("smoothquant", "hadamard"),
        ("hadamard", "smoothquant"),
        ("outlier_suppression", "awq"),
        ("equalization", "outlier_suppression_plus"),
    ],
    ids="-".join,
)
def test_statistics_after_two_transforms_are_those_of_the_values_that_are_met(
    pair: tuple[str, str], backend: str
) -> None:
    """Each linear layer's range is that of its own input, read off the rescaled weights: what it
    multiplies, times its weight, is what the float model's layer gave."""
    transforms = tuple(PartChoice(kind=k) for k in pair)
    realizer = made(backend)
    recipe = realizer.space.recipe(realizer.space.first(), transforms)
    parameters = realizer.parameters(recipe)
    seen = _inputs(realizer)
    for name, given in parameters.items():
        op = realizer.opened.view.by_name[name]
        maps, axis = realizer.change(name, op.inputs[0], transforms)
        x = seen[op.inputs[0]]
        for change in maps:
            x = np.asarray(change.apply(_like(change, x), axis))
        scale, zero = (
            float(p) for p in (given.inputs[0].scale, given.inputs[0].zero_point)
        )
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        np.testing.assert_allclose(scale, (high - low) / 255, rtol=2e-3)
        np.testing.assert_allclose(zero, np.round(-low / scale), atol=1)
    found = realizer.candidate(recipe).run(batches()[0])[0]
    error = np.linalg.norm(found - expected()) / np.linalg.norm(expected())
    assert error < 0.1


def _inputs(realizer: Realizer) -> dict[str, np.ndarray]:
    """What each op reads in the float model, over all batches."""
    found: dict[str, list[np.ndarray]] = {}
    values = {op.inputs[0]: None for op in realizer.opened.view.ops if op.weight}
    realizer.opened.session.observe(
        batches(),
        tuple(values),
        lambda value, x: found.setdefault(value, []).append(
            np.asarray(to_numpy(x)).copy()
        ),
    )
    return {value: np.concatenate(parts) for value, parts in found.items()}


def _like(change: Any, x: np.ndarray) -> Any:
    """An array of the library that a map's own arrays are of."""
    held = change.scale if change.scale is not None else change.shift
    return torch.from_numpy(x) if isinstance(held, torch.Tensor) else x


def test_the_size_of_a_channel_is_what_all_members_see() -> None:
    net, data = Forked().eval(), [torch.randn(4, 3, 6, 6) for _ in range(2)]
    opened = opened_torch(net, (data[0],))
    view = opened.view
    units = tuple(
        Unit(o.name, o.type, (o.name,), (STATIC, FLOAT))
        for o in view.ops
        if o.type == "conv"
    )
    awq = PartChoice(kind="awq")
    realizer = Realizer(
        opened,
        TuningSpace("torch", units, ((), (awq,))),
        HOST,
    )
    statistics = realizer.calibrate([(x,) for x in data])
    (link,) = links(view, opened.session.tensor, statistics, view.by_name)
    assert len(link.members) == 2
    with torch.no_grad():
        value = torch.relu(net.first(torch.cat(data))).numpy().astype(np.float64)
    padded = np.pad(value, ((0, 0), (0, 0), (1, 1), (1, 1)))
    high, wide = value.shape[2:]
    places = [
        padded[:, :, i : i + high, j : j + wide] for i in range(3) for j in range(3)
    ]
    under_kernel = np.mean([(p**2).mean((0, 2, 3)) for p in places], axis=0)
    alone = (value**2).mean((0, 2, 3))
    assert np.abs(under_kernel / alone - 1).max() > 0.1
    np.testing.assert_allclose(
        np.asarray(channel_energy(link)), (under_kernel + alone) / 2, rtol=1e-4
    )


@pytest.mark.parametrize("kinds", [("smoothquant",), ("smoothquant", "hadamard")])
def test_sensitivities_of_an_op_outside_the_group_are_of_the_value_that_it_meets(
    kinds: tuple[str, ...], tmp_path: Path
) -> None:
    net, data = Outsider().eval(), [torch.randn(8, 16) for _ in range(3)]
    opened = opened_on("onnx", net, (data[0],), tmp_path)
    inputs = [(x.numpy(),) for x in data]
    view = opened.view
    linear = [o for o in view.ops if o.type == "linear"]
    group = next(g for g in view.groups if g.kind == "rescale" and g.gain)
    readers = [o for o in linear if group.value in o.inputs]
    outside = next(o for o in readers if o.name not in group.members)
    inside = next(o for o in readers if o.name in group.members)
    scheme = STATIC.variant(weight=QuantSpec(dtype="int4", granularity="channel"))
    transforms = tuple(PartChoice(kind=k) for k in kinds)
    units = tuple(Unit(o.name, o.type, (o.name,), (scheme, FLOAT)) for o in linear)
    realizer = Realizer(
        opened,
        TuningSpace("onnx", units, ((), transforms)),
        HOST,
    )
    realizer.calibrate(inputs)
    errors = OpErrors(realizer, inputs)
    (plain,) = errors.of((outside.name,), scheme, ())
    (after,) = errors.of((outside.name,), scheme, transforms)
    assert after.share == pytest.approx(plain.share, rel=1e-5)
    # A member's: its rescaled weight times what it reads now is what the float layer gives.
    (member,) = errors.of((inside.name,), scheme, transforms)
    with torch.no_grad():
        y = net.norm(torch.cat(data)) @ net.inside.weight.T
    assert member.whole == pytest.approx(float((y**2).sum(1).mean()), rel=1e-3)


def test_the_ledger_tells_the_order_of_several_transforms() -> None:
    realizer = made("numpy")
    pair = (PartChoice(kind="smoothquant"), PartChoice(kind="hadamard"))
    recipe = realizer.space.recipe(realizer.space.first(), pair)
    ledger = realizer.candidate(recipe).ledger
    told = {name: line.reason for name, line in ledger.items()}
    turned = [name for name, why in told.items() if "smoothquant -> hadamard" in why]
    assert turned
    # A convolution takes no rotation, and says what it took.
    view = realizer.opened.view
    of_convs = [told[n] for n in told if view.by_name[n].type == "conv"]
    assert any("after smoothquant" in why for why in of_convs)
    assert not any("-> hadamard" in why for why in of_convs)
    one = realizer.candidate(Recipe(recipe.schemes, pair[:1], "numpy")).ledger
    assert not any("after smoothquant" in line.reason for line in one.values())


def test_values_that_share_a_scale_share_it_as_their_readers_meet_them() -> None:
    """A concat reads two values with one scale; a transform halves one of them for a linear layer
    that is no part of it."""
    joined = Op("cat", "concat", ("a", "b"), ("c",))
    reader = Op("lin", "linear", ("a",), ("y",))
    range_of = {"a": (-8.0, 8.0), "b": (-1.0, 1.0)}
    probes = [Probe(value, MINMAX) for value in range_of]
    plain = Statistics(probes, lambda _: MinMax(MinMaxConfig(), axis=None))
    halved = Statistics(probes, lambda _: MinMax(MinMaxConfig(), axis=None))
    for value, ends in range_of.items():
        x = np.asarray(ends, np.float32)
        plain.update(value, x)
        halved.update(value, x / 2 if value == "a" else x)
    session: Any = None
    before = Prepared(session, plain)
    after = Prepared(session, halved, before, seers={"a": frozenset({"lin"})})
    view = ModelView((joined, reader), (Group("s", "scale", ("cat",)),))
    ranges = ActivationRanges(shared_scales(view), scale_sharers(view))
    spec = QuantSpec(dtype="int8")
    scheme = OpScheme(mode="static", input=spec)
    of_both = ranges.of_inputs(joined, scheme, after)
    assert (
        float(of_both[0].scale)
        == float(of_both[1].scale)
        == pytest.approx(8 / 127.5, rel=0.01)
    )
    (own,) = ranges.of_inputs(reader, scheme, after)
    assert float(own.scale) == pytest.approx(4 / 127.5, rel=0.01)


class Loud(nn.Module):
    """Normalised features of which two are a hundred times as large as the others, and count for as
    much as they do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 96)
        with torch.no_grad():
            self.norm.weight[:2] *= 100.0
            self.head.weight[:, :2] /= 100.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


def test_a_search_over_combinations_picks_one_and_saves_it(tmp_path: Path) -> None:
    net, x = Loud().eval(), torch.randn(256, 64)
    with torch.no_grad():
        truth = net(x)

    def near(candidate: Any) -> float:
        with torch.no_grad():
            found = torch.as_tensor(candidate(x))
        return 1.0 - float((found - truth).norm() / truth.norm())

    result = octavo.autotune(
        net,
        near,
        [(x[:64],), (x[64:128],)],
        config={
            "rules": [{"mode": "static", "weight": {"granularity": "channel"}}],
            "transforms": [["smoothquant", "hadamard"], "equalization"],
        },
        metric="nearness",
        higher_is_better=True,
        tolerance=0.03,
        minimise="size",
        max_trials=4,
        confirm=False,
        progress=False,
    )
    both = (PartChoice(kind="smoothquant"), PartChoice(kind="hadamard"))
    assert result.goal_met
    assert result.best.recipe.transforms == both
    assert "after smoothquant -> hadamard" in repr(result)
    assert "smoothquant -> hadamard" in result.summary()
    result.save(tmp_path / "out")
    again = octavo.load(tmp_path / "out", Loud().eval())
    assert near(again) == pytest.approx(near(result.model), abs=1e-3)
