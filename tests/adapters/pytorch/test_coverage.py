"""The PyTorch backend's census against the parameters of modules built by hand."""

import pytest
import torch
from torch import nn

import octavo


class Odd(nn.Module):
    """Weights in layers, under ``@``, tied, split by a stand-in, in a buffer, and never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.layer = nn.Linear(32, 48)
        self.bare = nn.Parameter(torch.randn(48, 32))
        self.register_buffer("places", torch.randn(1, 10, 32))
        self.register_buffer("never_read", torch.randn(11, 13))
        self.rnn = nn.GRU(32, 32, batch_first=True)
        self.unused = nn.Linear(7, 9)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.embed(tokens) + self.places[:, : tokens.shape[1]]
        h = h + self.attention(h, h, h)[0]
        h = torch.relu(self.layer(h)) @ self.bare
        return self.head(self.rnn(h)[0])


def batches() -> list[torch.Tensor]:
    return [
        torch.randint(0, 50, (4, 8), generator=torch.Generator().manual_seed(i))
        for i in range(2)
    ]


@pytest.fixture
def odd() -> Odd:
    torch.manual_seed(0)
    return Odd().eval()


def test_every_weight_that_forward_uses_counts_once(odd: Odd) -> None:
    quantized = octavo.quantize_model(odd, "int8-weight-only", batches())
    coverage = quantized.coverage
    matrices = [
        p.numel()
        for name, p in odd.named_parameters()
        if p.ndim > 1 and not name.startswith("unused")
    ]
    assert coverage.total == sum(matrices) + odd.places.numel()
    assert coverage.quantized + coverage.kept == coverage.total
    loose = {row.weight: row.elements for row in coverage.rows if row.op is None}
    assert loose["places"] == odd.places.numel()
    assert {"unused.weight", "never_read"}.isdisjoint(
        row.weight for row in coverage.rows
    )
    assert all(row.reason for row in coverage.rows if row.is_float)
    assert coverage.summary() in quantized.notes


def test_the_module_tree_counts_the_same(odd: Odd) -> None:
    seen = [
        octavo.quantize_model(
            odd,
            "int8-weight-only",
            batches(),
            backend={"kind": "torch", "capture": how},
        ).coverage
        for how in ("auto", "modules")
    ]
    assert seen[0].total == seen[1].total


def test_without_an_example_all_weights_count(odd: Odd) -> None:
    coverage = octavo.quantize_model(odd, "int8-weight-only").coverage
    parameters = sum(p.numel() for p in odd.parameters() if p.ndim > 1)
    assert coverage.total >= parameters


def test_watching_changes_no_output(odd: Odd) -> None:
    batch = batches()[0]
    before = odd(batch)
    octavo.quantize_model(odd, "int8-weight-only", batches())
    torch.testing.assert_close(odd(batch), before, rtol=0, atol=0)
