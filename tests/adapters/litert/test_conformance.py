"""The conformance kit on a convolution network, linear layers and attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from octavo.adapters.litert import octavo_adapters
from octavo.plugin import AdapterCase, AdapterConformance
from tests.adapters.litert import models


def _case(path: Path, model: bytes, shape: tuple[int, ...]) -> AdapterCase:
    path.write_bytes(model)
    rng = np.random.default_rng(5)
    batches = [(rng.normal(size=shape).astype(np.float32),) for _ in range(3)]
    card = next(iter(octavo_adapters()))
    return AdapterCase(card=card, model=path, batches=batches, smaller=False)


class TestImages(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> AdapterCase:
        path = tmp_path_factory.mktemp("cnn") / "cnn.tflite"
        return _case(path, models.cnn(), (4, 13, 13, 3))


class TestLinear(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> AdapterCase:
        path = tmp_path_factory.mktemp("mlp") / "mlp.tflite"
        return _case(path, models.mlp(), (9, 24))


class TestAttention(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, tmp_path_factory: pytest.TempPathFactory) -> AdapterCase:
        path = tmp_path_factory.mktemp("attention") / "attention.tflite"
        return _case(path, models.transformer(), (3, 6, 16))
