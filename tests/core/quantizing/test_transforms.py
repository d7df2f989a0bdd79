"""Rescalings: the function stays, the factors are the papers', and what was calibrated carries
over."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.contract.adapter import Opened
from octavo.core.contract.calibrator import Probe
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import DataError
from octavo.core.numerics.channels import ChannelMap
from octavo.core.numerics.hadamard import hadamard, rotate
from octavo.core.quantizing.realize import Realizer
from octavo.core.quantizing.transforms.awq import importance
from octavo.core.quantizing.transforms.equalization import Equalization
from octavo.core.quantizing.transforms.norms import absmax_from_norm
from octavo.core.quantizing.transforms.smoothquant import smoothing
from octavo.core.quantizing.transforms.spiq import conversion_scales
from octavo.core.quantizing.transforms.suppression import (
    channel_shift,
    threshold_factors,
)
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import MINMAX, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from tests.helpers import as_opened

torch = pytest.importorskip("torch")
nn = torch.nn

HOST = PluginHost(third_party=False)


@pytest.fixture
def whole_bytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights of all 8 bits on CPUs without VNNI too, where torch's layers then compute in float32
    on the same codes.

    What a method gains over the rounding of activations must not depend on how finely this CPU
    rounds weights.
    """
    from octavo.adapters.pytorch import offers

    monkeypatch.setattr(offers, "saturates", lambda: "")
    offers.capability.cache_clear()
    yield
    offers.capability.cache_clear()


ALL = [
    "smoothquant",
    "awq",
    "equalization",
    "spiq",
    "outlier_suppression",
    "outlier_suppression_plus",
    "hadamard",
]


class Block(nn.Module):
    """A norm that two linear layers read, with loud channels, and a ReLU between two
    linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(16)
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, 4)
        with torch.no_grad():
            self.norm.weight[::5] *= 20
            self.norm.bias.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.last(torch.relu(self.left(x)) * torch.sigmoid(self.right(x)))


class Convolutions(nn.Module):
    """A convolution, a depthwise and a grouped one, of very different channel ranges, with batch
    norm and ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = (
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.depthwise, self.grouped = (
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 6, 1, groups=2),
        )
        with torch.no_grad():
            self.norm.weight.copy_(torch.logspace(-1.5, 1, 8))
            self.depthwise.weight *= torch.logspace(1, -1, 8)[:, None, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.grouped(torch.relu(self.depthwise(x)))


def model(name: str) -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(1)
    if name == "block":
        return Block().eval(), [torch.randn(5, 7, 16) for _ in range(3)]
    return Convolutions().eval(), [torch.randn(4, 3, 8, 8) for _ in range(3)]


def realizer(
    name: str | nn.Module,
    *transforms: PartChoice,
    scheme: OpScheme | None = None,
    batches: Any = None,
) -> Realizer:
    net, data = model(name) if isinstance(name, str) else (name, [])
    data = data or [x for (x,) in batches(data)]
    session = HOST.adapters()["torch"].build().open(net, (data[0],))
    view, capability = session.describe(), session.capability()
    float_scheme = OpScheme()
    units = tuple(
        Unit(
            o.name,
            o.type,
            (o.name,),
            (*((scheme,) if scheme else capability.for_op(o)[:1]), float_scheme),
        )
        for o in view.ops
        if o.weight is not None and len(capability.for_op(o)) > 1
    )
    space = TuningSpace(
        "torch", units, ((), tuple(transforms)) if transforms else ((),)
    )
    made = Realizer(Opened("torch", session, view, capability), space, HOST)
    made.calibrate([(x,) for x in data] if batches is None else batches(data))
    return made


@pytest.mark.parametrize("options", [{}, {"alpha": 0.8}, {"alpha": "auto"}], ids=str)
@pytest.mark.parametrize("name", ["block", "convolutions"])
def test_smoothquant_leaves_the_function(name: str, options: dict[str, Any]) -> None:
    check(name, PartChoice.model_validate({"kind": "smoothquant", **options}))


@pytest.mark.parametrize("kind", [*ALL, "both"])
@pytest.mark.parametrize("name", ["block", "convolutions"])
def test_the_function_stays(name: str, kind: str) -> None:
    if kind == "both":
        check(name, PartChoice(kind="equalization"), PartChoice(kind="smoothquant"))
    else:
        check(name, PartChoice(kind=kind))


@pytest.mark.parametrize("backend", ["onnx", "numpy"])
def test_the_function_stays_on_every_backend(backend: str, tmp_path: Path) -> None:
    for name in ("block", "convolutions"):
        net, data = model(name)
        HOST.adapters()["torch"].build().open(net, (data[0],)).export(
            "onnx", tmp_path / f"{name}.onnx"
        )
        session = (
            HOST.adapters()[backend]
            .build()
            .open(str(tmp_path / f"{name}.onnx"), (data[0].numpy(),))
        )
        view, capability = session.describe(), session.capability()
        units = [
            Unit(o.name, o.type, (o.name,), (*capability.for_op(o)[:1], OpScheme()))
            for o in view.ops
            if len(capability.for_op(o)) > 1
        ]
        choices = tuple((PartChoice(kind=kind),) for kind in ALL)
        made = Realizer(
            Opened(backend, session, view, capability),
            TuningSpace(backend, tuple(units), ((), *choices)),
            HOST,
        )
        made.calibrate([(x.numpy(),) for x in data])
        for transforms in choices:
            found = made.candidate(Recipe({}, transforms, backend)).run(
                (data[0].numpy(),)
            )[0]
            expected = net(data[0]).detach().numpy()
            np.testing.assert_allclose(
                found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
            )


def check(name: str, *transforms: PartChoice) -> None:
    made = realizer(name, *transforms)
    net, data = model(name)
    rescaled = made.candidate(Recipe({}, transforms, "torch"))
    for x in data:
        expected = net(x).detach().numpy()
        np.testing.assert_allclose(
            rescaled.run((x,))[0],
            expected,
            rtol=1e-5,
            atol=1e-5 * np.abs(expected).max(),
        )
    # Ranges of rotated values cannot be derived.
    assert made.observe_passes == 1 + any(
        t.kind == "hadamard" and name == "block" for t in transforms
    )


@pytest.mark.parametrize("name", ["block", "convolutions"])
def test_statistics_are_carried_over(name: str) -> None:
    """Ranges derived for the rescaled model equal those that a second pass observes.

    A group without a producer divides its value inside the op that reads it, where no pass can see
    it.
    """
    choice = PartChoice(kind="smoothquant")
    made = realizer(name, choice)
    derived = made.prepared((choice,))
    again = Realizer(
        as_opened(derived.session),
        made.space,
        HOST,
    )
    again.calibrate([(x,) for x in model(name)[1]])
    assert again.statistics is not None
    compared = 0
    inside = {
        g.value
        for g in made.opened.view.groups
        if g.kind == "rescale" and not g.producer
    }
    for probe, observer in again.statistics.observers.items():
        if probe.value in inside:
            continue
        mine = derived.statistics.observer(probe)
        if hasattr(observer, "low"):
            for a, b in ((mine.low, observer.low), (mine.high, observer.high)):  # type: ignore[attr-defined]
                np.testing.assert_allclose(
                    np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-4
                )
        else:
            np.testing.assert_allclose(
                np.asarray(mine.value), np.asarray(observer.value), rtol=1e-3, atol=1e-3
            )  # type: ignore[attr-defined]
        compared += 1
    assert compared >= 2
    assert made.observe_passes == 1


def test_other_calibrators_are_observed_once_more() -> None:
    choice = PartChoice(kind="smoothquant")
    spec, activation = (
        QuantSpec(dtype="int8", granularity="channel"),
        QuantSpec(dtype="uint8", symmetric=False),
    )
    scheme = OpScheme(
        mode="static", weight=spec, input=activation, calibrator=PartChoice(kind="mse")
    )
    made = realizer("block", choice, scheme=scheme)
    made.candidate(made.space.recipe(made.space.first(), (choice,)))
    assert made.observe_passes == 2
    made.candidate(made.space.recipe({made.space.tunable[0].name: scheme}, (choice,)))
    assert made.observe_passes == 2
    once = realizer(
        "block", choice, scheme=scheme, batches=lambda data: ((x,) for x in data)
    )
    with pytest.raises(DataError, match="read only once"):
        once.candidate(once.space.recipe(once.space.first(), (choice,)))


@pytest.mark.parametrize("kind", ["smoothquant", "outlier_suppression_plus", "spiq"])
@pytest.mark.usefixtures("whole_bytes")
def test_static_quantization_gains(kind: str) -> None:
    """Loud channels spoil one scale for the whole activation; a rescaling mends it."""
    choice = PartChoice(kind=kind)
    made = realizer("block", choice)
    net, data = model("block")
    errors = []
    for transforms in ((), (choice,)):
        candidate = made.candidate(made.space.recipe(made.space.first(), transforms))
        errors.append(
            sum(
                float(
                    (
                        (torch.from_numpy(candidate.run((x,))[0]) - net(x).detach())
                        ** 2
                    ).mean()
                )
                for x in data
            )
        )
    assert errors[1] < errors[0]


def test_gain_migration_leaves_a_norm_that_scales_nothing() -> None:
    """Outlier Suppression, eq. 3; and SPIQ's ranges from the norm's parameters, without data."""
    made = realizer("block", PartChoice(kind="outlier_suppression"))
    opened = made.opened
    ops = {o.name: o for o in opened.view.ops if o.weight is not None}
    group = next(g for g in opened.view.groups if g.gain)
    assert made.statistics is not None
    for kind, options in (("outlier_suppression", {}), ("spiq", {"source": "norm"})):
        part = HOST.part("transforms", kind)
        found = part.build(part.config(kind=kind, **options)).factors(
            opened.view, opened.session.tensor, made.statistics, ops
        )
        assert set(found) == {group.name}
        gain, shift = (
            np.asarray(opened.session.tensor(n)) for n in (group.gain, group.shift)
        )
        expected = (
            np.abs(gain)
            if kind == "outlier_suppression"
            else conversion_scales(np.abs(shift) + 6 * np.abs(gain))
        )
        np.testing.assert_allclose(np.asarray(found[group.name]), expected, rtol=1e-5)
    norm = opened.session.rescale(
        {group.name: np.abs(np.asarray(opened.session.tensor(group.gain)))}
    )
    np.testing.assert_allclose(
        np.abs(np.asarray(norm.tensor(group.gain))), 1.0, rtol=1e-6
    )


def test_a_weight_that_no_transform_touches_is_quantized_once() -> None:
    choice = PartChoice(kind="outlier_suppression")
    made = realizer("block", choice)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = made.parameters(made.space.recipe(made.space.first()))
        second = made.parameters(made.space.recipe(made.space.first(), (choice,)))
    same = {name for name in first if first[name].weight is second[name].weight}
    touched = {
        m for g in made.opened.view.groups if g.kind == "rescale" for m in g.members
    }
    assert same >= set(first) - touched - {g.producer for g in made.opened.view.groups}


def test_channel_ranges_are_planned_for_transforms() -> None:
    choice = PartChoice(kind="smoothquant")
    made = realizer("block", choice)
    values = {g.value for g in made.opened.view.groups if g.kind == "rescale"}
    assert values
    assert {p.value for p in made.probes() if p == Probe(p.value, MINMAX, -1)} >= values
    assert not any(p.calibrator.kind == "gram" for p in made.probes())
    searching = realizer(
        "block", PartChoice(kind="smoothquant", options=(("alpha", "auto"),))
    )
    assert any(p.calibrator.kind == "gram" for p in searching.probes())


# The formulas by themselves


def test_smoothing_by_the_paper() -> None:
    # Xiao et al. 2023, figure 5: alpha 0.5, inputs max (2, 16, 1, 8 ...), weights max (2, 1, 2, 1)
    x, w = np.asarray([2, 16, 2, 9], np.float32), np.asarray([2, 1, 2, 1], np.float32)
    np.testing.assert_allclose(smoothing(x, w, 0.5), [1, 4, 1, 3])
    np.testing.assert_allclose(smoothing(x, w, 1.0), x)
    assert smoothing(0 * x, w, 0.5).tolist() == [1, 1, 1, 1]


def test_equalization_by_the_paper() -> None:
    """Both ranges of a channel become their geometric mean (Nagel et al. 2019, eq. 11)."""
    made = realizer("convolutions", PartChoice(kind="equalization"))
    opened = made.opened
    settings = HOST.read("transforms", "equalization")
    ops = {o.name: o for o in opened.view.ops if o.weight is not None}
    assert made.statistics is not None
    factors = Equalization(settings).factors(
        opened.view, opened.session.tensor, made.statistics, ops
    )
    assert factors
    rescaled = opened.session.rescale(factors)
    for group in opened.view.groups:
        producer = opened.view.by_name.get(group.producer)
        if (
            group.name in factors
            and producer is not None
            and producer.weight is not None
        ):
            reader = opened.view.by_name[group.members[0]]
            assert reader.weight is not None
            outer = np.abs(np.asarray(rescaled.tensor(producer.weight.name))).max(
                axis=(1, 2, 3)
            )
            weight = np.abs(np.asarray(rescaled.tensor(reader.weight.name)))
            groups = len(outer) // weight.shape[1]
            inner = (
                weight.reshape(groups, -1, *weight.shape[1:])
                .max(axis=(1, 3, 4))
                .reshape(-1)
            )
            np.testing.assert_allclose(outer, inner, rtol=1e-2)


def test_shares_of_the_other_rescalings() -> None:
    absmax = np.asarray([1, 4, 16], np.float32)
    np.testing.assert_allclose(conversion_scales(absmax), [0.25, 1, 4], rtol=1e-6)
    np.testing.assert_allclose(threshold_factors(absmax, 4.0), [1, 1, 4])
    np.testing.assert_allclose(importance(absmax, 0.5), [0.5, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(
        absmax_from_norm(
            np.asarray([2.0, -1.0], np.float32),
            np.asarray([-3.0, 0.5], np.float32),
            6.0,
        ),
        [15, 6.5],
    )


def test_batch_norm_statistics_bound_its_output() -> None:
    """SPIQ without data: what the norm's parameters promise holds what is seen."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    seen = norm(torch.randn(20_000, 8) * 3 + 1).abs().amax(0)
    promised = absmax_from_norm(norm.weight.detach(), norm.bias.detach(), 6.0)
    assert bool((seen <= promised).all())
    assert bool((seen >= 0.4 * promised).all())


def test_shifting_keeps_the_output() -> None:
    """Outlier Suppression+, eqs. 3 and 4."""
    random = np.random.default_rng(0)
    x = (random.normal(size=(50, 8)) + np.linspace(-30, 30, 8)).astype(np.float32)
    weight, bias = (
        random.normal(size=(4, 8)).astype(np.float32),
        random.normal(size=4).astype(np.float32),
    )
    shift = channel_shift(x.min(0), x.max(0))
    moved = ChannelMap(shift=shift).reader_bias(weight, bias)
    np.testing.assert_allclose(
        (x - shift) @ weight.T + moved, x @ weight.T + bias, rtol=1e-5, atol=1e-3
    )
    assert np.abs(x - shift).max() < 0.3 * np.abs(x).max()


@pytest.mark.parametrize("n", [1, 7, 8, 12, 96, 384])
@pytest.mark.parametrize("seed", [None, 3])
def test_rotation_is_orthogonal_and_fast_equals_plain(n: int, seed: int | None) -> None:
    x = np.random.default_rng(0).normal(size=(3, n)).astype(np.float32)
    matrix = hadamard(n, x, seed)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-5)
    np.testing.assert_allclose(rotate(x, seed), x @ matrix, atol=1e-5)
    np.testing.assert_allclose(
        rotate(torch.from_numpy(x), seed).numpy(), x @ matrix, atol=1e-5
    )
    if n & (n - 1) == 0:
        np.testing.assert_allclose(np.abs(matrix), n**-0.5, rtol=1e-6)


def test_a_rotated_pair_computes_the_same_and_has_no_outliers() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 32)).astype(np.float32)
    first, bias = (
        random.normal(size=(48, 32)).astype(np.float32),
        random.normal(size=48).astype(np.float32),
    )
    first[5] *= 40
    readers = [random.normal(size=(8, 48)).astype(np.float32) for _ in range(2)]
    change = ChannelMap(rotation=0)
    turned, turned_bias = change.writer(first, bias)
    assert turned_bias is not None
    turned_readers = [change.reader(w) for w in readers]
    value, rotated = x @ first.T + bias, x @ turned.T + turned_bias
    for reader, other in zip(readers, turned_readers, strict=True):
        expected = value @ reader.T
        np.testing.assert_allclose(
            rotated @ other.T, expected, atol=1e-5 * np.abs(expected).max()
        )
    assert np.abs(rotated).max() < 0.5 * np.abs(value).max()


class Forked(nn.Module):
    """A 3x3 and a 1x1 convolution that read one value: their weights multiply other rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3)
        self.wide, self.narrow = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return torch.sigmoid(self.wide(x)) * self.narrow(x)


@pytest.mark.parametrize(
    "choice",
    [
        PartChoice(kind="awq"),
        PartChoice(kind="smoothquant", options=(("alpha", "auto"),)),
        PartChoice(kind="outlier_suppression_plus"),
    ],
    ids=str,
)
def test_members_with_other_kernels_are_each_judged_by_their_own_rows(
    choice: PartChoice,
) -> None:
    net, data = Forked().eval(), [torch.randn(4, 3, 8, 8) for _ in range(2)]
    made = realizer(net, choice, batches=lambda _: [(x,) for x in data])
    group = next(g for g in made.opened.view.groups if g.kind == "rescale")
    assert set(group.members) == {"wide", "narrow"}
    found = made.candidate(Recipe({}, (choice,), "torch")).run((data[0],))[0]
    expected = net(data[0]).detach().numpy()
    np.testing.assert_allclose(
        found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


class Outsider(nn.Module):
    """A norm that two linear layers read, one of them with a weight that is used again elsewhere:
    it keeps the norm's own output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.inside = nn.LayerNorm(16), nn.Linear(16, 16)
        self.tied = nn.Parameter(torch.randn(16, 16))
        with torch.no_grad():
            self.norm.weight[::5] *= 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return torch.tanh(self.inside(x)) @ self.tied + x @ self.tied


def test_an_op_outside_the_group_is_rounded_for_the_value_that_it_meets(
    tmp_path: Path,
) -> None:
    net, data = Outsider().eval(), [torch.randn(8, 16) for _ in range(3)]
    torch.onnx.export(
        net,
        (data[0],),
        str(tmp_path / "m.onnx"),
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
    )
    session = (
        HOST.adapters()["onnx"]
        .build()
        .open(str(tmp_path / "m.onnx"), (data[0].numpy(),))
    )
    view = session.describe()
    weight = QuantSpec(dtype="int8", granularity="channel")
    gptq = OpScheme(
        mode="static",
        weight=weight,
        input=QuantSpec(dtype="uint8", symmetric=False),
        algorithm=PartChoice(kind="gptq"),
    )
    group = next(g for g in view.groups if g.kind == "rescale" and g.gain)
    outside = [
        o.name
        for o in view.ops
        if o.type == "linear"
        and group.value in o.inputs
        and o.name not in group.members
    ]
    assert len(outside) == 1
    units = tuple(
        Unit(o.name, o.type, (o.name,), (gptq, OpScheme()))
        for o in view.ops
        if o.type == "linear"
    )
    choice = PartChoice(kind="smoothquant")
    made = Realizer(
        Opened("onnx", session, view, session.capability()),
        TuningSpace("onnx", units, ((), (choice,))),
        HOST,
    )
    made.calibrate([(x.numpy(),) for x in data])
    plain = made.parameters(made.space.recipe(made.space.first()))
    smooth = made.parameters(made.space.recipe(made.space.first(), (choice,)))
    assert smooth[outside[0]].weight is plain[outside[0]].weight
    assert smooth[outside[0]].inputs[0] is plain[outside[0]].inputs[0]
    assert smooth[group.members[0]].weight is not plain[group.members[0]].weight


def test_a_value_that_no_transform_touches_has_one_range() -> None:
    choices = (
        PartChoice(kind="outlier_suppression"),
        PartChoice(kind="outlier_suppression_plus"),
    )
    static = OpScheme(
        mode="static",
        weight=QuantSpec(dtype="int8", granularity="channel"),
        input=QuantSpec(dtype="uint8", symmetric=False),
    )
    made = realizer("block", *choices, scheme=static)
    plain, one, both = (
        made.parameters(made.space.recipe(made.space.first(), choices[:n]))
        for n in range(3)
    )
    last = next(name for name in plain if "last" in name)
    assert one[last].inputs[0] is plain[last].inputs[0]
    inside = next(m for g in made.opened.view.groups if g.gain for m in g.members)
    assert one[inside].inputs[0] is not plain[inside].inputs[0]
    assert both[last].inputs[0] is not plain[last].inputs[0]


class Loud(nn.Module):
    """Activations as in language models: a few channels are forty times as loud as the rest, or far
    from zero."""

    def __init__(self, far: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.wide, self.last = (
            nn.LayerNorm(96),
            nn.Linear(96, 64),
            nn.Linear(64, 16),
        )
        with torch.no_grad():
            if far:
                self.norm.bias[5::30] += far
            else:
                self.norm.weight[::40] *= 40

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.gelu(self.wide(self.norm(x)) / 8))


@pytest.mark.parametrize("backend", ["torch", "onnx", "numpy"])
@pytest.mark.parametrize(
    ("kind", "far"), [("hadamard", 0), ("outlier_suppression_plus", 60)]
)
@pytest.mark.usefixtures("whole_bytes")
def test_rotation_and_shift_help_where_channels_are_loud(
    kind: str, far: float, backend: str, tmp_path: Path
) -> None:
    """Static int8 with one scale an activation; the ratio of errors is far beyond what
    chance does."""
    net, data = Loud(far).eval(), [torch.randn(16, 6, 96) for _ in range(2)]
    torch_session = HOST.adapters()["torch"].build().open(net, (data[0],))
    session: Any = torch_session
    if backend != "torch":
        torch_session.export("onnx", tmp_path / "loud.onnx")
        session = (
            HOST.adapters()[backend]
            .build()
            .open(str(tmp_path / "loud.onnx"), (data[0].numpy(),))
        )
    view, capability = session.describe(), session.capability()
    # ONNX Runtime multiplies unsigned weights of all 8 bits on every CPU.
    dtype = "uint8" if backend == "onnx" else "int8"
    weight = QuantSpec(dtype=dtype, symmetric=backend != "onnx", granularity="channel")
    scheme = OpScheme(
        mode="static", weight=weight, input=QuantSpec(dtype="uint8", symmetric=False)
    )
    units = tuple(
        Unit(o.name, o.type, (o.name,), (scheme, OpScheme()))
        for o in view.ops
        if o.type == "linear"
    )
    plain, mended = (), (PartChoice(kind=kind),)
    made = Realizer(
        Opened(backend, session, view, capability),
        TuningSpace(backend, units, (plain, mended)),
        HOST,
    )
    made.calibrate([(x.numpy(),) for x in data])
    expected = net(data[0]).detach().numpy()

    def error(transforms: tuple[PartChoice, ...]) -> float:
        found = made.candidate(made.space.recipe(made.space.first(), transforms)).run(
            (data[0].numpy(),)
        )[0]
        return float(((found - expected) ** 2).mean())

    assert error(mended) < 0.3 * error(plain)


def test_a_channel_that_lies_at_one_end_of_its_range_is_not_shifted() -> None:
    """Behind ReLU: mostly zero, rarely large. Centred, it is large nearly always, and the rounding
    of weights shows."""
    torch.manual_seed(0)
    rare = (
        (torch.rand(2, 256, 96) < 0.01)
        * torch.rand(2, 256, 96)
        * torch.where(torch.arange(96) % 12 == 0, 40.0, 2.0)
    )
    net, data = (
        nn.Sequential(nn.Identity(), nn.Linear(96, 64)).eval(),
        [(x,) for x in rare],
    )
    session = HOST.adapters()["torch"].build().open(net, data[0])
    view, capability = session.describe(), session.capability()
    scheme = OpScheme(
        mode="static",
        weight=QuantSpec(dtype="int8", granularity="channel"),
        input=QuantSpec(dtype="uint8", symmetric=False),
    )
    units = tuple(
        Unit(o.name, o.type, (o.name,), (scheme, OpScheme())) for o in view.ops
    )
    shifting, scaling = (
        PartChoice(kind="outlier_suppression_plus", options=(("shift", shift),))
        for shift in (True, False)
    )
    made = Realizer(
        Opened("torch", session, view, capability),
        TuningSpace("torch", units, ((), (shifting,), (scaling,))),
        HOST,
    )
    made.calibrate(data)
    assert "shift" in view.groups[0].takes

    def error(transform: PartChoice) -> float:
        found = made.candidate(made.space.recipe(made.space.first(), (transform,))).run(
            data[0]
        )[0]
        return float(((found - net(*data[0]).detach().numpy()) ** 2).mean())

    assert error(shifting) <= 1.01 * error(scaling)


def test_rotation_helps_four_bit_activations() -> None:
    """QuaRot's case: a token's int4 codes, where one loud channel leaves the others no levels."""
    random = np.random.default_rng(0)
    x, weight = (
        random.normal(size=(64, 96)).astype(np.float32),
        random.normal(size=(32, 96)).astype(np.float32),
    )
    x[:, ::40] *= 40
    change = ChannelMap(rotation=0)

    def error(value: np.ndarray, reader: np.ndarray) -> float:
        step = np.abs(value).max(1, keepdims=True) / 7
        return float(
            ((np.round(value / step) * step @ reader.T - x @ weight.T) ** 2).mean()
        )

    assert error(change.apply(x), change.reader(weight)) < 0.3 * error(x, weight)


def test_what_a_transform_leaves_out_is_in_the_ledger(
    logged: pytest.LogCaptureFixture,
) -> None:
    choice = PartChoice(kind="hadamard")
    made = realizer("convolutions", choice)
    candidate = made.candidate(made.space.recipe(made.space.first(), (choice,)))
    assert "found nothing to rescale" in logged.text
    (group, *_) = [g for g in made.opened.view.groups if g.kind == "rescale"]
    assert (
        f"hadamard: no rotation over {group.name}, which takes scale"
        in candidate.ledger[group.members[0]].reason
    )


def test_a_rotation_needs_a_second_pass_for_static_ranges_alone() -> None:
    choice = PartChoice(kind="hadamard")
    weight_only = OpScheme(
        mode="weight_only",
        weight=QuantSpec(dtype="int4", granularity="channel"),
        algorithm=PartChoice(kind="gptq"),
    )
    static = OpScheme(
        mode="static",
        weight=QuantSpec(dtype="int8", granularity="channel"),
        input=QuantSpec(dtype="uint8", symmetric=False),
    )
    for scheme, passes in ((weight_only, 1), (static, 2)):
        made = realizer("block", choice, scheme=scheme)
        for _ in range(2):
            made.candidate(made.space.recipe(made.space.first(), (choice,)))
        assert made.observe_passes == passes
        assert made.weights_quantized == len(made.space.tunable)
