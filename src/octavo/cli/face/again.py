"""The command line that does a run again, as a shell takes it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

ONCE = ("--fresh", "--no-resume", "--json", "--dry-run")
"""Flags of one run only: whoever repeats it goes on with its history, and reads what it says."""


def again(arguments: Sequence[str]) -> str:
    """Return the command that repeats a run and goes on where it stopped.

    Args:
        arguments: What the command was called with, its name first.
    """
    kept = [argument for argument in arguments if argument not in ONCE]
    # Outside an activated environment the command has no short name.
    if shutil.which("octavo"):
        program = ["octavo"]
    else:
        program = [sys.executable, "-m", "octavo"]
    line = [*program, *kept]
    return subprocess.list2cmdline(line) if os.name == "nt" else shlex.join(line)
