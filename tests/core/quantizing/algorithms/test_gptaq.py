"""GPTAQ: the sweep against the paper's algorithm, the walk against models run by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.contract.adapter import Opened
from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import DataError, SchemeError
from octavo.core.numerics.affine import affine_params
from octavo.core.quantizing.algorithms.gptaq import Gptaq, GptaqConfig
from octavo.core.quantizing.algorithms.gptq import Gptq, GptqConfig
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from tests.arrays import each_kind
from tests.core.quantizing.test_algorithms import textbook
from tests.helpers import opened_on, opened_torch

HOST = PluginHost(third_party=False)


def moments(
    rows: int, features: int, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A weight, inputs X, the X' that they have become, X'^T X' and (X - X')^T X'."""
    random = np.random.default_rng(7)
    mixing = np.eye(features) + 0.3 * random.normal(size=(features, features))
    x = random.normal(size=(4 * features, features)) @ mixing
    lost = random.normal(size=(features, features)) / np.sqrt(features)
    y = x + noise * (x @ lost)  # what is lost depends on all the inputs
    weight = random.normal(size=(rows, features)).astype(np.float32)
    gram, drift = y.T @ y, (x - y).T @ y
    return weight, x, y, gram.astype(np.float32), drift.astype(np.float32)


def papers(
    weight: np.ndarray,
    gram: np.ndarray,
    drift: np.ndarray,
    spec: QuantSpec,
    alpha: float = 1.0,
) -> np.ndarray:
    """Algorithm 1 of Li et al. 2025: GPTQ's, whose later columns also take w_j P_j."""
    return textbook(weight, gram, spec, 0.01, alpha * drift)


def rounded(
    weight: Any, gram: Any, drift: Any, spec: QuantSpec, **options: Any
) -> np.ndarray:
    context = WeightContext(quantized_gram=gram, drift=drift)
    found = Gptaq(GptaqConfig(**options)).quantize(weight, spec, context)
    return np.asarray(found.codes)


@each_kind
@pytest.mark.parametrize(
    ("features", "group"), [(20, 8), (96, 32), (300, 128), (150, None), (1, None)]
)
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_equals_the_papers_algorithm(
    features: int, group: int | None, alpha: float, make: Any
) -> None:
    weight, _, _, gram, drift = moments(16, features)
    granularity = f"group:{group}" if group else "channel"
    spec = QuantSpec(dtype="uint3", symmetric=False, granularity=granularity)
    found = rounded(make(weight), make(gram), make(drift), spec, alpha=alpha)
    expected = papers(weight, gram, drift, spec, alpha)
    same = (found == expected).all(1)
    assert same.mean() >= 0.8
    assert np.abs(found[~same] - expected[~same]).max(initial=0) <= 3


def output_error(numbers: Any, weight: np.ndarray, x: Any, y: Any) -> float:
    return float(((y @ np.asarray(numbers).T - x @ weight.T) ** 2).sum())


@pytest.mark.parametrize("dtype", ["int3", "int4", "nf4", "mxfp4"])
def test_outputs_are_nearer_to_the_float_models(dtype: str) -> None:
    """Nearer than GPTQ's, on the quantized model's inputs as on the float model's."""
    weight, x, y, gram, drift = moments(24, 64)
    spec = QuantSpec(dtype=dtype, granularity="group:32")
    paired = WeightContext(quantized_gram=gram, drift=drift)
    mine = Gptaq(GptaqConfig()).quantize(weight, spec, paired).dequantize()
    plain = WeightContext(gram=(x.T @ x).astype(np.float32))
    blind = Gptq(GptqConfig()).quantize(weight, spec, plain).dequantize()
    half = WeightContext(gram=gram)
    uncorrected = Gptq(GptqConfig()).quantize(weight, spec, half).dequantize()
    error = output_error(mine, weight, x, y)
    for other in (blind, uncorrected):
        assert error < 0.9 * output_error(other, weight, x, y)


def test_without_drift_it_is_gptq() -> None:
    weight, _, _, gram, drift = moments(8, 64)
    spec = QuantSpec(dtype="int4", granularity="group:32")
    expected = Gptq(GptqConfig()).quantize(weight, spec, WeightContext(gram=gram))
    for nothing, alpha in ((0 * drift, 1.0), (drift, 0.0)):
        found = rounded(weight, gram, nothing, spec, alpha=alpha)
        np.testing.assert_array_equal(found, expected.codes)
    # In the order of the inputs' size the drift is turned with the columns.
    order = np.argsort(-np.diag(gram), kind="stable")
    whole = QuantSpec(dtype="int4", granularity="channel")
    found = rounded(weight, gram, drift, whole, act_order=True)
    turned = rounded(
        weight[:, order], gram[order][:, order], drift[order][:, order], whole
    )
    assert (found[:, order] == turned).mean() > 0.98


def test_edges() -> None:
    spec = QuantSpec(dtype="int4", granularity="group:32")
    weight, _, _, gram, drift = moments(3, 40)
    given = weight.copy()
    gram[5, :] = gram[:, 5] = drift[:, 5] = 0  # an input that has died
    assert np.isfinite(rounded(weight, gram, drift, spec)).all()
    np.testing.assert_array_equal(weight, given)
    one = weight[:1].copy()  # its transpose is the same memory
    rounded(one, gram, drift, spec)
    np.testing.assert_array_equal(one, given[:1])
    half = rounded(weight.astype(np.float16), gram, drift, spec)
    assert np.abs(half - rounded(weight, gram, drift, spec)).max() <= 2
    assert rounded(weight[:0], gram, drift, spec).shape == (0, 40)
    with pytest.raises(SchemeError, match="gptaq rounds column by column"):
        rounded(weight, gram, drift, QuantSpec(dtype="int4", granularity="block:3x8"))
    with pytest.raises(SchemeError, match="give calibration data"):
        rounded(weight, None, None, spec)


SPEC = QuantSpec(dtype="int4", granularity="channel")


def scheme(kind: str, **options: Any) -> OpScheme:
    choice = PartChoice(kind=kind, options=tuple(options.items()))
    return OpScheme(mode="weight_only", weight=SPEC, algorithm=choice)


def mlp() -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6)
    ).eval()


def batches(count: int = 3) -> list[tuple[np.ndarray]]:
    random = np.random.default_rng(1)
    return [(random.normal(size=(48, 12)).astype(np.float32),) for _ in range(count)]


def opened_mlp() -> Opened:
    return opened_torch(mlp(), batches()[0])


def realizer(opened: Opened, schemes: list[OpScheme], data: Any) -> Realizer:
    names = [op.name for op in opened.view.ops if op.weight is not None]
    units = tuple(Unit(n, "linear", (n,), (*schemes, FLOAT)) for n in names)
    made = Realizer(opened, TuningSpace(opened.name, units), HOST)
    made.calibrate(data)
    return made


def by_hand(model: Any, x: np.ndarray) -> list[np.ndarray]:
    """The codes of each layer, from both models run in plain NumPy."""
    layers = [(model[i].weight, model[i].bias) for i in (0, 2, 4)]
    acts = [np.tanh, lambda v: np.maximum(v, 0), lambda v: v]
    exact, quantized = x, x
    found = []
    for (w, b), act in zip(layers, acts, strict=True):
        weight, bias = w.detach().numpy(), b.detach().numpy()
        gram = quantized.T @ quantized
        drift = (exact - quantized).T @ quantized
        codes = papers(weight, gram, drift, SPEC)
        params = affine_params(weight.min(1), weight.max(1), SPEC)
        numbers = params.scale[:, None] * codes
        found.append(codes)
        exact = act(exact @ weight.T + bias)
        quantized = act(quantized @ numbers.T + bias).astype(np.float32)
    return found


@pytest.mark.parametrize("backend", ["torch", "onnx", "numpy"])
def test_each_layer_meets_the_inputs_of_the_layers_quantized_before(
    backend: str, tmp_path: Path
) -> None:
    opened = opened_on(backend, mlp(), batches()[0], tmp_path)
    kind = scheme("gptaq")
    made = realizer(opened, [kind], batches())
    names = [op.name for op in opened.view.ops if op.weight is not None]
    found = made.parameters(Recipe(dict.fromkeys(names, kind), (), backend))
    expected = by_hand(mlp(), np.concatenate([x for (x,) in batches()]))
    for name, codes in zip(names, expected, strict=True):
        weight = found[name].weight
        assert weight is not None
        mine = np.asarray(weight.codes)
        same = mine if mine.shape == codes.shape else mine.T
        assert (same == codes).mean() > 0.97


def test_what_was_quantized_before_is_part_of_the_key() -> None:
    """A first layer in float leaves the second another input; the same recipe costs nothing."""
    opened = opened_mlp()
    kind, other = scheme("gptaq"), scheme("rtn")
    made = realizer(opened, [kind, other], batches())

    def second(first: OpScheme) -> np.ndarray:
        recipe = Recipe({"0": first, "2": kind}, (), "torch")
        weight = made.parameters(recipe)["2"].weight
        assert weight is not None
        return np.asarray(weight.codes)

    alone, behind = second(FLOAT), second(other)
    assert (alone != behind).any()
    count = made.weights_quantized
    np.testing.assert_array_equal(second(other), behind)
    assert made.weights_quantized == count
    # On exact inputs there is nothing to make up for.
    gptq = realizer(opened, [scheme("gptq")], batches())
    plain = gptq.parameters(Recipe({"2": scheme("gptq")}, (), "torch"))["2"].weight
    assert plain is not None
    assert (alone == np.asarray(plain.codes)).mean() > 0.98


def test_less_loss_than_gptq_behind_quantized_layers() -> None:
    torch = pytest.importorskip("torch")
    opened = opened_mlp()
    data = batches(8)
    x = torch.from_numpy(np.concatenate([b for (b,) in data]))
    errors = {}
    for kind in ("gptaq", "gptq", "rtn"):
        made = realizer(opened, [scheme(kind)], data)
        recipe = Recipe(dict.fromkeys(("0", "2", "4"), scheme(kind)), (), "torch")
        with torch.no_grad():
            y = made.candidate(recipe).native(x)
            errors[kind] = float(((y - mlp()(x)) ** 2).mean())
    assert errors["gptaq"] < 0.95 * errors["gptq"] < errors["rtn"]


def test_refusals_name_the_way_out() -> None:
    opened = opened_mlp()
    kind = scheme("gptaq")
    recipe = Recipe({"0": kind}, (), "torch")
    once = realizer(opened, [kind], iter(batches()))
    with pytest.raises(DataError, match=r"read again.*or use gptq"):
        once.parameters(recipe)


def test_runs_that_go_on_from_a_block_meet_the_weights_replaced_in_it() -> None:
    """What is kept between two observations is older than no weight before it."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

        def forward(self, x: Any) -> Any:
            if float(x.abs().max()) > 1e9:  # no graph can be traced of this
                x = x / 2
            return x + self.down(torch.relu(self.up(x)))

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(4))

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return x

    torch.manual_seed(0)
    model = Stack().eval()
    opened = opened_torch(model, batches()[0])
    names = [op.name for op in opened.view.ops if op.weight is not None]
    kind = scheme("gptaq")
    units = tuple(Unit(n, "linear", (n,), (kind, FLOAT)) for n in names)
    found = []
    for limit in (2**24, 0):
        space = TuningSpace("torch", units)
        made = Realizer(opened, space, HOST, gram_bytes=limit)
        made.calibrate(batches())
        recipe = Recipe(dict.fromkeys(names, kind), (), "torch")
        weights = [p.weight for p in made.parameters(recipe).values()]
        found.append([np.asarray(w.codes) for w in weights if w is not None])
    for staged, whole in zip(*found, strict=True):
        np.testing.assert_array_equal(staged, whole)


def test_batches_without_a_partner_leave_gptq_on_the_quantized_inputs() -> None:
    """What a router sends elsewhere in the quantized model cannot be compared."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.expert = nn.Linear(12, 32), nn.Linear(32, 6)

        def sent(self, x: Any) -> Any:
            hidden = self.router(x)
            return hidden[hidden[:, 0] > 0]

        def forward(self, x: Any) -> Any:
            return self.expert(self.sent(x)).sum(0, keepdim=True)

    torch.manual_seed(0)
    model = Routed().eval()
    first, *others = batches()
    data = [(first[0][:6],), *others]
    opened = opened_torch(model, data[0])
    made = realizer(opened, [scheme("gptaq"), scheme("gptaq", alpha=0.0)], data)

    def expert(**options: Any) -> np.ndarray:
        kinds = {"router": scheme("rtn"), "expert": scheme("gptaq", **options)}
        found = made.parameters(Recipe(kinds, (), "torch"))
        router, weight = found["router"].weight, found["expert"].weight
        assert router is not None
        assert weight is not None
        with torch.no_grad():
            floats = [len(model.sent(torch.from_numpy(x))) for (x,) in data]
            kept = model.router.weight.clone()
            model.router.weight.copy_(router.dequantize())
            rounded = [len(model.sent(torch.from_numpy(x))) for (x,) in data]
            model.router.weight.copy_(kept)
        # Some batches have partners, and are not enough.
        assert 0 < sum(a == b for a, b in zip(floats, rounded, strict=True)) < 3
        return np.asarray(weight.codes)

    np.testing.assert_array_equal(expert(), expert(alpha=0.0))
