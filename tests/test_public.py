"""The public names: all there, and imported only when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import octavo


def test_every_public_name_is_there() -> None:
    for name in octavo.__all__:
        assert getattr(octavo, name) is not None
        assert name in dir(octavo)
    with pytest.raises(AttributeError, match="autotun"):
        _ = octavo.autotun


def test_importing_octavo_imports_next_to_nothing() -> None:
    code = (
        "import sys, octavo; print(*sorted(m for m in sys.modules if m.split('.')[0] in "
        "('numpy', 'pydantic', 'optuna', 'torch', 'onnx', 'scipy')))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )
