"""The process that runs cases, one line of JSON on standard output for each; it may crash or hang,
and is started again."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any, TextIO

LIMIT = 60  # seconds of one case; all end within a few, and other work may share the processor


def main() -> None:
    """Run cases ``first``, ``first + 1``, ... until the parent ends this process or ``last`` is
    done."""
    seed, first, last, home, names = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        Path(sys.argv[4]),
        sys.argv[5].split(","),
    )
    # Libraries print to standard output: only what is said here may reach the parent.
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    from . import corpus

    if not (home / "ready").exists():
        corpus.build(home)
        (home / "ready").touch()
        _tell(said, controls=[_control(name, home) for name in names])
    _tell(said, ready=True)
    for number in range(first, last):
        _tell(said, **_case(seed, number, home, names, said))
    _tell(said, done=True)


def _tell(said: TextIO, **facts: Any) -> None:
    said.write(json.dumps(facts) + "\n")


def _control(name: str, home: Path) -> list[str]:
    """Run cases of a family with nothing changed: what they raise says that the family is no test
    of anything."""
    found: set[str] = set()
    for number in range(4):
        outcome = run(name, random.Random(f"control {number}"), home, off=True)
        if outcome["outcome"] != "passed":
            found.add(outcome["detail"])
    return [name, *sorted(found)]


def _case(
    seed: int, number: int, home: Path, names: list[str], said: TextIO
) -> dict[str, Any]:
    source = random.Random(f"{seed}/{number}")
    name = names[number % len(names)]
    _tell(said, begin=number, family=name)
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    try:
        return {"end": number, "family": name, **run(name, source, home)}
    finally:
        faulthandler.cancel_dump_traceback_later()


def run(
    name: str, source: random.Random, home: Path, *, off: bool = False
) -> dict[str, Any]:
    """Run one case in a folder of its own.

    Returns:
        ``outcome``: ``passed``, ``typed`` or ``bare``; ``kind``: type and place of what was raised;
            ``detail``: its text.
    """
    from octavo.core.errors import OctavoError

    from .families import FAMILIES, Bench
    from .mutations import Mutator

    folder = Path(tempfile.mkdtemp(prefix="octavo-fuzz-"))
    try:
        FAMILIES[name](Bench(Mutator(source, off=off), home, folder))
    except OctavoError as error:
        return {
            "outcome": "typed",
            "kind": type(error).__name__,
            "detail": f"{type(error).__name__}: {error}"[:400],
        }
    except Exception as error:
        return {
            "outcome": "bare",
            "kind": _kind(error),
            "detail": "".join(traceback.format_exception(error))[-3000:],
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"outcome": "passed", "kind": "", "detail": ""}


def _kind(error: BaseException) -> str:
    """Return the type and the innermost frame of octavo's own."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if is_own(f.filename)]
    place = (
        f"{Path(own[-1].filename).parent.name}/{Path(own[-1].filename).name}:{own[-1].name}"
        if own
        else "outside octavo"
    )
    return f"{type(error).__name__} in {place}"


def is_own(path: str) -> bool:
    """True for a file of octavo itself, wherever the package is."""
    import octavo

    root = str(Path(octavo.__file__).resolve().parent.parent.parent)
    resolved = os.path.realpath(path)
    return (
        "benchmarks" not in Path(resolved).parts
        and "site-packages" not in resolved
        and resolved.startswith(root)
    )


if __name__ == "__main__":
    main()
