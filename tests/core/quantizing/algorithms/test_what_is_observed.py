"""What importance-weighted scales and AWQ without data are told, through the whole way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.contract.adapter import Opened
from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import SchemeError
from octavo.core.quantizing.algorithms.importance import Importance, ImportanceConfig
from octavo.core.quantizing.realize import Realizer
from octavo.core.quantizing.transforms.awq import AwqScale, AwqScaleConfig
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit

torch = pytest.importorskip("torch")
nn = torch.nn
HOST = PluginHost(third_party=False)
INT3 = QuantSpec(dtype="int3", granularity="channel")


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)
    ).eval()


def batches() -> list[tuple[Any]]:
    generator = torch.Generator().manual_seed(1)
    loud = torch.logspace(-1, 1, 8)
    return [(torch.randn(32, 8, generator=generator) * loud,) for _ in range(3)]


def realized(algorithm: PartChoice) -> tuple[Realizer, Recipe]:
    session = HOST.adapters()["torch"].build().open(net(), batches()[0])
    view = session.describe()
    scheme = OpScheme(mode="weight_only", weight=INT3, algorithm=algorithm)
    names = [op.name for op in view.ops if op.weight is not None]
    units = tuple(Unit(name, "linear", (name,), (scheme, FLOAT)) for name in names)
    opened = Opened("torch", session, view, session.capability())
    made = Realizer(opened, TuningSpace("torch", units), HOST)
    made.calibrate(batches())
    return made, Recipe(dict.fromkeys(names, scheme), (), "torch")


def test_inputs_weigh_by_their_mean_squares() -> None:
    made, recipe = realized(PartChoice(kind="importance"))
    found = made.parameters(recipe)
    model, x = net(), torch.cat([x for (x,) in batches()])
    for index in (0, 2, 4):
        inputs = model[:index](x)
        context = WeightContext(channel_square=(inputs**2).mean(0).detach())
        weight = model[index].weight.detach()
        expected = Importance(ImportanceConfig()).quantize(weight, INT3, context)
        quantized = found[str(index)].weight
        assert quantized is not None
        assert (quantized.codes == expected.codes).float().mean() > 0.98
    assert made.observe_passes == 1


def test_gradients_weigh_by_their_mean_squares() -> None:
    """Those of the backend's own draws, squared and averaged over batches."""
    choice = PartChoice.model_validate(
        {"kind": "importance", "importance": "gradients"}
    )
    made, recipe = realized(choice)
    found = made.parameters(recipe)
    names = ["0.weight", "2.weight", "4.weight"]
    squares = {name: [] for name in names}
    made.opened.session.gradients(
        batches(), names, lambda name, g: squares[name].append((g**2).clone())
    )
    config = ImportanceConfig(importance="gradients")
    for name in names:
        weight = made.opened.session.tensor(name)
        context = WeightContext(gradient_square=torch.stack(squares[name]).mean(0))
        expected = Importance(config).quantize(weight, INT3, context)
        quantized = found[name[0]].weight
        assert quantized is not None
        assert (quantized.codes == expected.codes).float().mean() > 0.98


def test_a_backend_without_gradients_is_refused_with_the_way_out() -> None:
    choice = PartChoice.model_validate(
        {"kind": "importance", "importance": "gradients"}
    )
    made, recipe = realized(choice)
    capability = made.opened.capability
    without = replace(capability, features=capability.features - {"gradients"})
    object.__setattr__(made.opened, "capability", without)
    with pytest.raises(
        SchemeError, match=r'offers no gradients.*importance = "inputs"'
    ):
        made.parameters(recipe)


class Reader(nn.Module):
    """A norm whose value two linear layers read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.norm = nn.LayerNorm(32)
        self.left, self.right = nn.Linear(32, 16), nn.Linear(32, 8)
        with torch.no_grad():
            self.left.weight *= torch.logspace(-2, 0, 32)
            self.right.weight *= torch.logspace(-2, 0, 32)
            self.left.weight[:, 3] = self.right.weight[:, 3] = 0

    def forward(self, x: Any) -> Any:
        x = self.norm(x)
        return self.left(x).sum(-1) + self.right(x).sum(-1)


def test_awq_without_data_takes_the_inverse_of_mean_weights() -> None:
    model = Reader().eval()
    session = HOST.adapters()["torch"].build().open(model, (torch.randn(4, 32),))
    view = session.describe()
    ops = {op.name: op for op in view.ops if op.weight is not None}
    config = AwqScaleConfig(source="weights")
    nothing: Any = None  # statistics are not looked at
    found = AwqScale(config).factors(view, session.tensor, nothing, ops)
    (factors,) = (np.asarray(f) for f in found.values())
    both = torch.cat([model.left.weight, model.right.weight]).detach().abs().numpy()
    size = both.mean(0)
    usual = np.delete(factors * size, 3)
    np.testing.assert_allclose(usual, size.mean(), rtol=1e-5)
    assert factors[3] == 1
    assert config.needs(frozenset({"gram"})) == frozenset()
    assert AwqScaleConfig().needs(frozenset({"gram"})) == {"gram"}


def test_awq_without_data_needs_none_and_helps() -> None:
    """Channels whose weights are small are loud, as behind a trained norm: rounding spares them."""
    model = Reader().eval()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 32, generator=generator)
    with torch.no_grad():
        model.norm.weight /= torch.logspace(-2, 0, 32)

    def error(**transforms: Any) -> float:
        rule = {
            "types": ["linear"],
            "mode": "weight_only",
            "weight": {"dtype": "int4", "granularity": "group:32"},
            "algorithm": "rtn",
        }
        made = octavo.quantize_model(model, {"rules": [rule], **transforms})
        with torch.no_grad():
            return float((made.model(x) - model(x)).square().mean())

    assert error(transforms=[{"kind": "awq", "source": "weights"}]) < 0.2 * error()
