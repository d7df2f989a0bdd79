"""Sensitivities from gradients: against the distance that they predict, the exact trace, and
between backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.strategy import Problem
from octavo.core.errors import ConfigError
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.sensitivity.lending import lend
from octavo.core.sensitivity.service import SensitivityService
from tests.helpers import as_opened

torch = pytest.importorskip("torch")
nn = torch.nn

HOST = PluginHost(third_party=False)
STORED = Rule(mode="weight_only", weight={"dtype": ["int8", "int4"]})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8)
    ).eval()


def batches() -> list[tuple[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(32, 32, generator=generator),) for _ in range(2)]


def service(
    adapter: str, source: Any, given: Any, rule: Rule = STORED, **more: Any
) -> SensitivityService:
    session = HOST.adapters()[adapter].build().open(source, given[0])
    opened = as_opened(session)
    space = build_space(opened, (rule,))
    realizer = Realizer(opened, space, HOST)
    realizer.calibrate(given)
    return SensitivityService(opened, realizer, given, **more)


def pairs(found: SensitivityService) -> list[Any]:
    return [
        (u.name, s)
        for u in found.realizer.space.tunable
        for s in u.choices
        if not s.is_float
    ]


def test_gradients_predict_the_distance_of_the_outputs() -> None:
    made = service("torch", network(), batches())
    asked = pairs(made)
    predicted, measured = (
        np.array(made("gradient", asked)),
        np.array(made("output_distance", asked)),
    )
    # A draw of eight labels on two batches; to second order only.
    assert np.abs(np.log(predicted / measured)).max() < np.log(2.0)
    assert np.corrcoef(np.log(predicted), np.log(measured))[0, 1] > 0.98


def test_the_trace_is_that_of_the_exact_hessian() -> None:
    model = network()
    made = service("torch", model, batches()[:1])
    (x,) = batches()[0]
    y0 = model(x).detach()
    exact = {}
    for name in ("0.weight", "2.weight", "4.weight"):
        weight = dict(model.named_parameters())[name].detach()
        jacobian = torch.func.jacrev(
            lambda w, n=name: torch.func.functional_call(model, {n: w}, (x,))
        )(weight)
        # D is the mean over rows and columns of (y - y0)^2 / variance of the column.
        spread = y0.var(dim=0, correction=0)
        by_column = jacobian.square().sum(dim=(0, 2, 3)) / spread
        exact[name] = float(2.0 * by_column.sum().detach() / y0.numel())
    assert made.traces.traces() == pytest.approx(exact, rel=0.15)


def test_they_are_kept_and_never_computed_twice(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    made = service("torch", network(), batches(), path=path)
    asked = pairs(made)
    first = [made(kind, asked) for kind in ("gradient", "hessian_trace")]
    made.save()
    again = service("torch", network(), batches(), path=path)
    assert [again(kind, asked) for kind in ("gradient", "hessian_trace")] == first
    assert again.batches_run == 0


def test_hawq_takes_the_true_trace_and_says_so() -> None:
    made = service("torch", network(), batches())
    part = HOST.part("strategies", "hawq_v2")
    strategy = part.build(
        HOST.read("strategies", "hawq_v2"),
        Problem(made.realizer.space, ("size",), 0, made),
    )
    kind, remark = strategy.ordered_by()
    assert kind == "hessian_trace"
    assert "model's outputs" in remark
    other = part.build(
        HOST.read("strategies", "hawq_v2"),
        Problem(made.realizer.space, ("size",), 0, None),
    )
    assert other.ordered_by()[0] == "hessian"
    assert "no backend offers gradients" in other.ordered_by()[1]


def test_a_backend_without_gradients_borrows_the_traces_of_one_that_has_them(
    tmp_path: Path,
) -> None:
    given = batches()
    own = service("torch", network(), given)
    own.opened.session.export("onnx", tmp_path / "model.onnx")
    other = service(
        "numpy",
        tmp_path / "model.onnx",
        [(b[0].numpy(),) for b in given],
        Rule(mode="weight_only"),
    )
    assert "hessian_trace" not in other.kinds
    with pytest.raises(ConfigError, match="no sensitivity 'hessian_trace' on numpy"):
        other("hessian_trace", pairs(other))
    lend((other, own))
    assert "hessian_trace" in other.kinds
    ran = own.batches_run
    scheme = next(
        s
        for s in other.realizer.space.tunable[0].choices
        if s in own.realizer.space.tunable[0].choices
    )
    names = [
        (a.name, b.name)
        for a, b in zip(
            other.realizer.space.tunable, own.realizer.space.tunable, strict=True
        )
    ]
    mine = other("hessian_trace", [(a, scheme) for a, _ in names])
    assert own.batches_run > ran
    assert mine == pytest.approx(
        own("hessian_trace", [(b, scheme) for _, b in names]), rel=1e-3
    )


def lent(
    tmp_path: Path, given: list[Any], *, changed: bool = False
) -> tuple[SensitivityService, SensitivityService]:
    """Return the service of a backend without gradients, and that of the one that lends some."""
    own = service("torch", network(), given)
    exported = own
    if changed:
        other = network()
        with torch.no_grad():
            other[0].weight *= 1.5
        exported = service("torch", other, given)
    exported.opened.session.export("onnx", tmp_path / "model.onnx")
    arrays = [(b[0].numpy(),) for b in given]
    mode = Rule(mode=["weight_only", "dynamic", "static"])
    borrower = service("numpy", tmp_path / "model.onnx", arrays, mode)
    lend((borrower, own))
    return borrower, own


def test_gradients_are_lent_for_the_borrowers_own_errors(tmp_path: Path) -> None:
    borrower, _ = lent(tmp_path, batches())
    assert borrower.preferred == "gradient"
    asked = pairs(borrower)
    # Rounded inputs are among them: what they add is measured under the same gradients.
    assert {scheme.mode for _, scheme in asked} == {"weight_only", "dynamic", "static"}
    predicted = np.array(borrower("gradient", asked))
    ran = borrower.batches_run
    measured = np.array(borrower("output_distance", asked))
    assert borrower.batches_run - ran >= 2 * len(asked)
    assert np.abs(np.log(predicted / measured)).max() < np.log(2.5)
    assert np.corrcoef(np.log(predicted), np.log(measured))[0, 1] > 0.98


def test_gradients_of_other_weights_are_not_lent(tmp_path: Path) -> None:
    borrower, _ = lent(tmp_path, batches(), changed=True)
    first, *others = borrower.realizer.space.tunable
    price = {
        u.name: borrower.price("gradient", [(u.name, u.choices[0])])
        for u in (first, *others)
    }
    # The first layer is another one there: its distance is measured in place of its gradient.
    assert price[first.name] == 2 * 2
    assert all(price[unit.name] > 40 for unit in others)
    found = borrower("gradient", [(first.name, first.choices[0])])
    assert found == borrower("output_distance", [(first.name, first.choices[0])])


@pytest.mark.parametrize(
    "kind", ["gradient", "output_distance", "hessian_trace", "weight_error"]
)
def test_a_price_is_what_is_paid(kind: str) -> None:
    made = service("torch", network(), batches())
    asked = pairs(made)
    price = made.price(kind, asked)
    assert price > 0
    made(kind, asked)
    assert made.batches_run == price
    assert made.price(kind, asked) == 0
    assert made(kind, asked)
    assert made.batches_run == price


def test_draws_and_rounding_are_told_as_they_go_on() -> None:
    from contextlib import contextmanager

    begun: list[int] = []

    @contextmanager
    def watched(count: int):
        begun.append(0)
        yield lambda: begun.__setitem__(-1, begun[-1] + 1)
        assert begun[-1] == count

    made = service("torch", network(), batches(), watched=watched)
    asked = pairs(made)
    made("gradient", asked)
    assert begun == [len(asked) + 8]


class Encoder(nn.Module):
    """Rows are pooled to one embedding, and one channel of it is loud: few directions count."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(16, 48), nn.Linear(48, 16)
        self.third = nn.Linear(16, 16)
        self.loud = torch.ones(16)
        self.loud[2] = 9.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + self.second(torch.tanh(self.first(x)))
        y = (self.third(y) * self.loud).mean(dim=1)
        return nn.functional.normalize(y, dim=-1)


def test_gradients_are_right_where_few_directions_of_the_outputs_count() -> None:
    random = torch.Generator().manual_seed(5)
    given = [(1.0 + torch.randn(4, 12, 16, generator=random),) for _ in range(2)]
    made = service("torch", Encoder().eval(), given)
    asked = pairs(made)
    predicted = np.array(made("gradient", asked))
    measured = np.array(made("output_distance", asked))
    apart = np.log(predicted / measured)
    # Channels taken for independent are wrong by 0.9 to 1.5 here.
    assert np.sqrt(np.mean(apart**2)) < 0.7


def test_auto_draws_for_weights_and_measures_rounded_inputs() -> None:
    made = service(
        "torch", network(), batches(), Rule(mode=["weight_only", "dynamic", "static"])
    )
    asked = pairs(made)
    stored = [pair for pair in asked if pair[1].input is None]
    rounded = [pair for pair in asked if pair[1].input is not None]
    assert stored
    assert rounded
    assert made.price("auto", asked) == 2 * (24 + len(rounded) + 1)
    found = dict(zip(asked, made("auto", asked), strict=True))
    assert [found[p] for p in stored] == made("gradient", stored)
    assert [found[p] for p in rounded] == made("output_distance", rounded)
    # Asked for, gradients tell what rounded inputs cost too.
    drawn = np.array(made("gradient", rounded))
    measured = np.array([found[p] for p in rounded])
    assert np.abs(np.log(drawn / measured)).max() < np.log(2.5)
