"""An OpenVINO backend that computes in float and says that it does not is caught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from octavo.adapters.openvino import candidate
from octavo.adapters.openvino.running import compile_model
from octavo.adapters.openvino.session import OpenVinoSession
from tests.adapters.onnx import models
from tests.adapters.openvino.test_conformance import case_of
from tests.core.testing.lying import fails


@pytest.fixture
def in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let OpenVINO round as asked, multiply in float, and the ledger say ``kernel``."""

    def compiled(model, config, **options):
        return compile_model(model, config, LP_TRANSFORMS_MODE="NO", **options)

    honest = OpenVinoSession.carry_out

    def carry_out(self, recipe, parameters):
        lines = {name: given.line("kernel") for name, given in parameters.items()}
        return honest(self, recipe, parameters).with_ledger(lines)

    monkeypatch.setattr(candidate, "compile_model", compiled)
    monkeypatch.setattr(OpenVinoSession, "carry_out", carry_out)


def test_float_products_are_seen_by_the_witness(in_float: None, tmp_path: Path) -> None:
    zeros = (np.zeros((1, 3, 12, 12), np.float32),)
    case = case_of(models.convolutional(), models.images(), tmp_path, zeros)
    case = replace(case, ops_per_type=1)
    assert "the witness: it is run as" in fails("test_kernels_are_witnessed", case)


def test_float_products_are_seen_without_a_witness(
    in_float: None, tmp_path: Path
) -> None:
    zeros = (np.zeros((1, 3, 12, 12), np.float32),)
    case = case_of(models.convolutional(), models.images(), tmp_path, zeros)
    case = replace(case, witness=None, ops_per_type=1)
    assert "no integer kernel" in fails("test_integer_products_leave_nothing", case)
