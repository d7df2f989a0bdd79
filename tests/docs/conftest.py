"""octavo as a reader installs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from .pages import ROOT


@dataclass(frozen=True)
class Reader:
    """Somebody who has installed the wheel and has no checkout.

    Attributes:
        wheel: The wheel's file.
        site: The folder that it is installed in.
    """

    wheel: Path
    site: Path

    def environment(self, home: Path) -> Mapping[str, str]:
        """Return the variables of a process that finds the wheel, and its command, first."""
        commands = self.site / "bin"
        return {
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.site),
            "OCTAVO_HOME": str(home),
            "HF_HUB_OFFLINE": "1",  # the pages need no network
            # One thread each: several would wait for each other where tests share the processors.
            "OMP_NUM_THREADS": "1",
        }

    def run(self, folder: Path, *command: str, timeout: float = 550) -> str:
        """Run a command in a folder and return what it printed; a failure is shown whole."""
        done = subprocess.run(
            command,
            cwd=folder,
            env=self.environment(folder / ".home"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-20000:]
        return done.stdout

    def python(self, folder: Path, *arguments: str) -> str:
        """Run Python like :meth:`run`."""
        return self.run(folder, sys.executable, *arguments)


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The wheel, built from the sources and installed beside its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    install = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index")
    subprocess.run([*install, "--target", site, wheel], check=True, capture_output=True)
    return Reader(wheel, site)
