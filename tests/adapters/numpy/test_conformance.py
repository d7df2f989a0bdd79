"""The NumPy backend keeps the promises that every backend makes."""

import numpy as np
import pytest

from octavo.adapters.numpy.candidate import NumpyCandidate
from octavo.adapters.numpy.graph import Builder, Graph
from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.conformance import AdapterCase, AdapterConformance
from tests.core.testing.lying import fails

HOST = PluginHost(third_party=False)


def convolutional() -> Graph:
    """Convolution, batch norm, ReLU, depthwise and grouped convolutions, residual add, pooling, two
    linear layers."""
    random = np.random.default_rng(3)

    def f(*shape: int) -> np.ndarray:
        return (
            random.normal(0, 1, shape) / np.sqrt(max(1, np.prod(shape[1:])))
        ).astype(np.float32)

    b = Builder()
    x = b.input("x", (None, 3, 12, 12))
    y = b.Conv(x, f(32, 3, 3, 3), pads=(1, 1, 1, 1), strides=(2, 2), name="first")
    y = b.Relu(
        b.BatchNormalization(y, np.abs(f(32)) + 0.5, f(32), f(32), np.abs(f(32)) + 0.5)
    )
    z = b.Conv(
        y, f(32, 1, 3, 3), f(32), auto_pad="SAME_UPPER", group=32, name="depthwise"
    )
    y = b.Conv(b.Add(y, z), f(48, 16, 1, 2), f(48), group=2, name="grouped")
    y = b.Relu(
        b.Gemm(
            b.Flatten(b.GlobalAveragePool(y)), f(64, 48), f(64), transB=1, name="hidden"
        )
    )
    return b.graph(b.Softmax(b.Gemm(y, f(64, 10), f(10), name="classifier"), axis=1))


def transformer() -> Graph:
    """Embedding, layer norms, attention with a mask, GELU: what a transformer's block
    is made of."""
    random = np.random.default_rng(4)

    def f(*shape: int) -> np.ndarray:
        return (random.normal(0, 1, shape) / np.sqrt(shape[0])).astype(np.float32)

    width, heads = 64, 4
    b = Builder()
    ids, mask = (
        b.input("ids", (None, None), "int64"),
        b.input("mask", (None, None), "float32"),
    )
    x = b.Gather(
        b.constant(random.normal(0, 1, (50, width)).astype(np.float32), "embedding"),
        ids,
        name="embed",
    )
    normed = b.LayerNormalization(
        x, np.ones(width, np.float32) + f(width), f(width), name="norm1"
    )

    def split(value: str, name: str, order: tuple[int, ...]) -> str:
        layer = b.Add(b.MatMul(value, f(width, width), name=name), f(width))
        return str(
            b.Transpose(
                b.Reshape(layer, np.array([0, 0, heads, width // heads])), perm=order
            )
        )

    q, k, v = (
        split(normed, n, p)
        for n, p in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3)))
    )
    bias = b.Unsqueeze(
        b.Mul(b.Sub(np.float32(1), mask), np.float32(-1e9)), np.array([1, 2])
    )
    scores = b.Add(b.Div(b.MatMul(q, k), np.float32(4)), bias)
    y = b.Reshape(
        b.Transpose(b.MatMul(b.Softmax(scores), v), perm=(0, 2, 1, 3)),
        np.array([0, 0, width]),
    )
    x = b.Add(x, b.MatMul(y, f(width, width), name="out"))
    normed = b.LayerNormalization(
        x, np.ones(width, np.float32) + f(width), f(width), name="norm2"
    )
    h = b.Add(b.MatMul(normed, f(width, 128), name="up"), f(128))
    h = b.Mul(
        b.Mul(h, b.Add(b.Erf(b.Div(h, np.float32(np.sqrt(2)))), np.float32(1))),
        np.float32(0.5),
    )
    return b.graph(b.Add(x, b.MatMul(h, f(128, width), name="down")))


def images() -> list[tuple[np.ndarray, ...]]:
    random = np.random.default_rng(5)
    return [(random.normal(0, 1, (4, 3, 12, 12)).astype(np.float32),) for _ in range(3)]


def tokens() -> list[tuple[np.ndarray, ...]]:
    random = np.random.default_rng(6)
    return [
        (random.integers(0, 50, (2, n)), np.ones((2, n), np.float32))
        for n in (7, 9, 12)
    ]


class TestConvolutional(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        return AdapterCase(
            HOST.adapters()["numpy"],
            convolutional(),
            images(),
            host=HOST,
            ops_per_type=3,
        )


class TestTransformer(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        return AdapterCase(HOST.adapters()["numpy"], transformer(), tokens(), host=HOST)


def two_heads() -> Graph:
    """One hidden layer, and two outputs of one shape."""
    random = np.random.default_rng(8)

    def f(*shape: int) -> np.ndarray:
        return (random.normal(0, 1, shape) / np.sqrt(shape[0])).astype(np.float32)

    b = Builder()
    x = b.input("x", (None, 32))
    hidden = b.Relu(b.Gemm(x, f(32, 48), f(48), name="hidden"))
    first = b.Gemm(hidden, f(48, 6), f(6), name="first")
    second = b.Gemm(hidden, f(48, 6), f(6), name="second")
    return b.graph(first, second)


def rows() -> list[tuple[np.ndarray, ...]]:
    random = np.random.default_rng(9)
    return [(random.normal(0, 1, (n, 32)).astype(np.float32),) for n in (8, 5)]


class TestSeveralOutputs(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        return AdapterCase(HOST.adapters()["numpy"], two_heads(), rows(), host=HOST)


def test_outputs_that_change_places_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    case = AdapterCase(HOST.adapters()["numpy"], two_heads(), rows(), host=HOST)
    assert fails("test_outputs_come_in_their_order", case) == ""
    honest = NumpyCandidate.run

    def run(self, batch):
        outputs = honest(self, batch)
        return outputs[::-1] if len(self.recipe) else outputs

    monkeypatch.setattr(NumpyCandidate, "run", run)
    assert "another output" in fails("test_outputs_come_in_their_order", case)
    assert fails("test_everything_at_once", case)
