"""The kinds of arrays that array-neutral code is tested with: NumPy's, and torch's where it is."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest


def to_torch(array: Any) -> Any:
    """Return the same numbers as a torch tensor; skips the test where torch is not installed."""
    return pytest.importorskip("torch").asarray(array)


MAKERS: dict[str, Callable[[Any], Any]] = {"numpy": np.asarray}
if find_spec("torch") is not None:
    MAKERS["torch"] = to_torch
"""Name of a kind -> a function that makes such an array of a NumPy one."""

each_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
"""Runs a test once per kind, with ``make``."""
