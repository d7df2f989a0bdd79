"""The ONNX backend keeps the promises that every backend makes."""

import pytest

from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.conformance import AdapterCase, AdapterConformance
from tests.adapters.onnx import models

HOST = PluginHost(third_party=False)


class TestConvolutional(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        return AdapterCase(
            HOST.adapters()["onnx"],
            models.convolutional(),
            models.images(),
            host=HOST,
            smaller=False,
        )


class TestTransformer(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        return AdapterCase(
            HOST.adapters()["onnx"],
            models.transformer_block(),
            models.tokens(),
            host=HOST,
        )
