"""Runs one test of the conformance kit on a case, to see whether a lie is caught."""

from __future__ import annotations

import inspect
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from octavo.core.testing.conformance import AdapterCase, AdapterConformance

FIXTURES = (
    "case", "opened", "space", "realizer", "expected", "bench", "seen_ops",
)  # fmt: skip


def fails(name: str, case: AdapterCase) -> str:
    """Run one test of the kit on a case, and return what it says; '' where it passes."""
    made: dict[str, object] = {"case": case}
    for fixture in FIXTURES[1:]:
        build = inspect.unwrap(getattr(AdapterConformance, fixture))
        made[fixture] = _called(build, made, AdapterConformance)
    try:
        with TemporaryDirectory() as folder:
            made["tmp_path"] = Path(folder)
            _called(getattr(AdapterConformance, name), made, AdapterConformance())
    except pytest.skip.Exception:
        return "skipped"
    # Whatever a dishonest backend raises fails a test of pytest's.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _called(function, made, first):
    function = getattr(function, "_fixture_function", function)
    function = getattr(function, "__func__", function)
    names = list(inspect.signature(function).parameters)[1:]
    return function(first, *(made[name] for name in names))
