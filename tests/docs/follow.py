"""Follows a page, block by block: a script that is run where the reader would be.

It imports nothing of the tests, so that nothing of the checkout is on its path. Its argument is a
file of steps, each with what to do, code and a place; what a step printed is compared where the
page says so.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path


class Tee(io.StringIO):
    """Keeps what is printed, and prints it."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)
        return super().write(text)


def follow(steps: list[dict[str, str]]) -> None:
    """Take all steps in this process and this folder."""
    printed = ""
    for number, step in enumerate(steps):
        print(f"--- {step['place']}", flush=True)
        if step["act"] == "write":
            write(step)
        elif step["act"] == "compare":
            compare(step, printed)
        elif step["act"] == "sh":
            printed = shell(step)
        else:
            printed = python(step, number)


def write(step: dict[str, str]) -> None:
    path = Path(step["file"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(step["code"], encoding="utf-8")


def python(step: dict[str, str], number: int) -> str:
    """Run a block in ``__main__``, from a file, so that tracers which read sources find it."""
    path = Path(f".block-{number}.py").absolute()
    path.write_text(step["code"], encoding="utf-8")
    with contextlib.redirect_stdout(Tee()) as printed:
        exec(compile(step["code"], path, "exec"), sys.modules["__main__"].__dict__)
    return printed.getvalue()


def shell(step: dict[str, str]) -> str:
    """Run a block of commands; the first that fails ends it."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step["code"]],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode:
        raise SystemExit(f"{step['place']}: exit code {done.returncode}")
    return done.stdout


def compare(step: dict[str, str], printed: str) -> None:
    shown = [line.rstrip() for line in step["code"].strip().splitlines()]
    found = [line.rstrip() for line in printed.strip().splitlines()]
    if shown != found:
        raise SystemExit(
            f"{step['place']}: the page shows\n{step['code']}\nand this was printed\n{printed}"
        )


if __name__ == "__main__":
    follow(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
