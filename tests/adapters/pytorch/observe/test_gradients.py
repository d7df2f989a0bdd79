"""Gradients and Hessian-vector products of the model's own predictions, against closed forms and
torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers import torch_session


class Words(nn.Module):
    """A language model with a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.inner(self.embed(ids))))


def distance(
    model: nn.Module, weights: dict[str, torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    y0 = model(x).detach()
    y = torch.func.functional_call(model, weights, (x,))
    if x.is_floating_point():
        return (y - y0).square().sum() / (2 * (y0 - y0.mean()).square().sum())
    own, odds = y0.log_softmax(-1), y.log_softmax(-1)
    return (own.exp() * (own - odds)).sum(-1).mean()


def hessian(model: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    weight = dict(model.named_parameters())[name].detach()
    found: torch.Tensor = torch.func.hessian(lambda w: distance(model, {name: w}, x))(
        weight
    )  # type: ignore[no-untyped-call]
    return found.reshape(weight.numel(), weight.numel())


def perceptron() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), torch.randn(9, 5)


def words() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Words(), torch.randint(0, 11, (3, 4))


CASES = [
    (perceptron, "0.weight"),
    (perceptron, "2.weight"),
    (words, "inner.weight"),
    (words, "embed.weight"),
]


@pytest.mark.parametrize(("make", "name"), CASES)
def test_a_hessian_vector_product_is_the_hessian_times_the_vector(make, name) -> None:
    model, x = make()
    v = torch.randn(dict(model.named_parameters())[name].shape)
    found = {}
    session = torch_session(model.eval(), (x,))
    assert session.gradients([(x,)], [name], found.__setitem__, along={name: v}) == 1
    torch.testing.assert_close(
        found[name].reshape(-1),
        hessian(model, name, x) @ v.reshape(-1),
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize(("make", "name"), CASES)
def test_the_mean_square_of_drawn_gradients_is_the_hessians_diagonal(
    make, name
) -> None:
    model, x = make()
    session, total, draws = (
        torch_session(model.eval(), (x,)),
        torch.zeros(dict(model.named_parameters())[name].shape),
        1500,
    )

    def sink(_: str, g: torch.Tensor) -> None:
        total.add_(g.square())

    for seed in range(draws):
        session.gradients([(x,)], [name], sink, seed=seed)
    expected = hessian(model, name, x).trace()
    assert float(total.sum() / draws) == pytest.approx(
        float(expected.detach()), rel=0.1
    )


def test_a_folded_batch_norm_is_part_of_the_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 2),
    )
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, -1.5]))
        norm.running_var.copy_(torch.tensor([0.3, 1.0, 4.0]))
    x = torch.randn(6, 2, 4, 4)
    session = torch_session(model.eval(), (x,))
    weight = session.tensor("0.weight")
    v, found = torch.randn(weight.shape), {}
    session.gradients([(x,)], ["0.weight"], found.__setitem__, along={"0.weight": v})
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), model[4]).eval()
    conv = plain[0]
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.bias.copy_(session.tensor("0.bias"))
    expected = hessian(plain, "0.weight", x) @ v.reshape(-1)
    torch.testing.assert_close(
        found["0.weight"].reshape(-1), expected, rtol=1e-3, atol=1e-5
    )


def test_the_users_model_collects_no_gradients_and_draws_repeat() -> None:
    model, x = words()
    session = torch_session(model.eval(), (x,))
    runs: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    for found, seed in zip(runs, (3, 3, 4), strict=True):
        session.gradients([(x,), (x,)], ["inner.weight"], found.__setitem__, seed=seed)
    assert torch.equal(runs[0]["inner.weight"], runs[1]["inner.weight"])
    assert not torch.equal(runs[0]["inner.weight"], runs[2]["inner.weight"])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
