"""The OpenVINO backend keeps the promises that every backend makes."""

from typing import Any

import pytest

pytest.importorskip("openvino")

import openvino as ov

from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.conformance import AdapterCase, AdapterConformance
from tests.adapters.onnx import models

HOST = PluginHost(third_party=False)


def as_openvino(proto: Any) -> ov.Model:
    return ov.Core().read_model(proto.SerializeToString(), b"")


class TestConvolutional(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        return AdapterCase(
            HOST.adapters()["openvino"],
            as_openvino(models.convolutional()),
            models.images(),
            host=HOST,
            smaller=False,
            ops_per_type=3,
        )


class TestTransformer(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        return AdapterCase(
            HOST.adapters()["openvino"],
            as_openvino(models.transformer_block()),
            models.tokens(),
            host=HOST,
            smaller=False,
            ops_per_type=3,
        )
