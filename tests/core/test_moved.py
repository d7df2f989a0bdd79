"""Import paths of the release before: what its documentation named is still the same module."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from octavo.core.moved import ROOMS

DOCUMENTED = {
    "octavo.core.adapter": (
        "Adapter",
        "Session",
        "Candidate",
        "OpParameters",
        "Applied",
        "Batch",
    ),
    "octavo.core.algorithms.base": ("WeightAlgorithm", "WeightContext", "Rescaling"),
    "octavo.core.algorithms.rtn": ("RoundToNearest", "RtnConfig"),
    "octavo.core.calibrators.base": ("Calibrator", "Observer"),
    "octavo.core.capability": ("Capability", "Offer"),
    "octavo.core.channels": ("ChannelMap",),
    "octavo.core.conformance": (
        "AdapterConformance",
        "StrategyCase",
        "StrategyConformance",
    ),
    "octavo.core.criteria.base": ("Criterion", "Verdict"),
    "octavo.core.graph": ("ModelView", "Op"),
    "octavo.core.hookspecs": ("hookimpl",),
    "octavo.core.numerics.affine": (
        "Array",
        "QuantParams",
        "affine_params",
        "dequantize",
    ),
    "octavo.core.objectives.base": ("Objective",),
    "octavo.core.parts": ("AdapterPart", "Part", "PartConfig"),
    "octavo.core.recipe": ("Recipe",),
    "octavo.core.report": ("report_data",),
    "octavo.core.scheme": ("OpScheme", "QuantSpec"),
    "octavo.core.simulator": ("simulate",),
    "octavo.core.statistics": ("Statistics",),
    "octavo.core.strategy": ("Problem", "Strategy"),
    "octavo.core.trial": ("Trial",),
}


@pytest.mark.parametrize("path", sorted(DOCUMENTED))
def test_documented_paths_keep_working(path: str) -> None:
    module = import_module(path)
    for name in DOCUMENTED[path]:
        assert hasattr(module, name), name


def test_an_earlier_path_is_the_same_module() -> None:
    assert import_module("octavo.core.scheme") is import_module(
        "octavo.core.values.scheme"
    )


def test_a_module_inside_a_package_that_moved_does_not_run_twice() -> None:
    code = """
import octavo.core.algorithms.gptq as earlier
import octavo.core.quantizing.algorithms.gptq as today
from octavo.core.algorithms import rtn
import octavo.core.quantizing.algorithms.rtn as same
assert earlier is today and rtn is same
assert today.__spec__.name == today.__name__ == "octavo.core.quantizing.algorithms.gptq"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(ROOMS))
def test_every_earlier_path_leads_somewhere(path: str) -> None:
    assert import_module(f"octavo.core.{path}").__name__ == f"octavo.core.{ROOMS[path]}"


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("octavo.core.nowhere")
