"""The kit on three kinds of module: a traced network, a transformer that cannot be traced, a single
layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import octavo
from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.conformance import AdapterCase, AdapterConformance

CARD = PluginHost(third_party=False).adapters()["torch"]


class Residual(nn.Module):
    """Convolutions with batch norm, a residual add, a depthwise convolution, pooling, a linear
    layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.block = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(16 * 49, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(self.block(x) + x)
        return self.head(self.depthwise(x).flatten(1))


class Encoder(nn.Module):
    """A pre-norm transformer block whose optional argument keeps it from being traced."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.query, self.key, self.value, self.out = (
            nn.Linear(32, 32) for _ in range(4)
        )
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = self.embed(ids)
        h = self.norm1(x)
        scores = self.query(h) @ self.key(h).transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -1e9)
        x = x + self.out(scores.softmax(-1) @ self.value(h))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


class Speech(nn.Module):
    """A recurrent layer, attention of torch.nn, a transposed convolution and batch norms after it
    and after a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.listen = nn.LSTM(
            32, 32, num_layers=2, bidirectional=True, batch_first=True
        )
        self.mix = nn.MultiheadAttention(64, 4, batch_first=True)
        self.widen, self.norm = nn.ConvTranspose1d(64, 32, 4, 2, 1), nn.BatchNorm1d(32)
        self.pool, self.centre = nn.Linear(32, 32), nn.BatchNorm1d(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.listen(x)
        x = x + self.mix(x, x, x, need_weights=False)[0]
        x = torch.relu(self.norm(self.widen(x.transpose(1, 2))))
        return self.centre(self.pool(x.mean(-1)))


def residual() -> nn.Module:
    torch.manual_seed(0)
    model = Residual()
    for _ in range(5):  # running statistics that are not the identity
        model(torch.randn(16, 3, 16, 16))
    return model.eval()


class TestTraced(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        model = residual()
        torch.manual_seed(1)
        return AdapterCase(
            card=CARD,
            model=model,
            batches=[(torch.randn(8, 3, 16, 16),) for _ in range(3)],
            float_model=model,
            ops_per_type=4,
            source=lambda batch: model(*batch).detach(),
        )


class TestModules(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        torch.manual_seed(0)
        model = Encoder().eval()
        batches = [{"ids": torch.randint(0, 50, (4, 12))} for _ in range(3)]
        return AdapterCase(
            card=CARD,
            model=model,
            batches=batches,
            float_model=Encoder,
            source=lambda batch: model(**batch).detach(),
            odd=[{"ids": torch.zeros(1, 1, dtype=torch.int64)}],
        )


class TestSpeech(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        torch.manual_seed(0)
        model = Speech()
        for _ in range(5):
            model(torch.randn(16, 8, 32))
        batches = [(torch.randn(4, 8, 32),) for _ in range(3)]
        return AdapterCase(
            card=CARD, model=model.eval(), batches=batches, float_model=Speech
        )


class TestOneLayer(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        torch.manual_seed(0)
        model = nn.Linear(64, 64).eval()
        return AdapterCase(
            card=CARD,
            model=model,
            batches=[(torch.randn(16, 64).numpy(),)],
            float_model=model,
        )


@pytest.mark.parametrize(
    ("layer", "x", "scheme"),
    [
        (nn.Linear(16, 8), torch.ones(2, 16), "int8-static"),
        (nn.Linear(32, 8), torch.ones(2, 32), "int4-weight-only"),
        (nn.Conv1d(4, 8, 3), torch.ones(2, 4, 8), "int8-static"),
        (nn.ConvTranspose1d(4, 8, 3), torch.ones(2, 4, 8), "int8-static"),
        (nn.Embedding(9, 32), torch.ones(2, 3, dtype=torch.int64), "int8-weight-only"),
        (nn.LSTM(8, 8), torch.ones(3, 2, 8), "int8-dynamic"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_quantized_layer_alone_is_called_by_the_same_name(
    layer: nn.Module, x: torch.Tensor, scheme: str
) -> None:
    quantized = octavo.quantize_model(layer.eval(), scheme, [(x,)]).candidate
    by_name, in_order = quantized.run({"input": x}), quantized.run((x,))
    np.testing.assert_array_equal(by_name[0], in_order[0])
