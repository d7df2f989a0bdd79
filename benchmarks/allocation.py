"""Allocations of bits against each other: octavo's, the plain ones, AutoScheme's and ModelOpt's.

``OCTAVO_LM=folder python -m benchmarks.allocation`` gives each of the 42 linear layers of the small
Llama's blocks 2, 3, 4 (with a zero point) or 8 bits in groups of 32, within six budgets, by code
bits and by all that a file holds. Each method's ALLOCATION is judged under one common rounding (to
nearest, and octavo's GPTQ): the divergence from the float model and the perplexity over held-out
tokens. ``--model`` takes other models.

Results are written to ``--out`` as they come, and a run that was stopped goes on there. Short runs:
``--budgets 2.5 3.5 --rows 4 --methods octavo uniform``. ``--twice`` allocates again in a second
process. The peers are run where ``pip install auto-round nvidia-modelopt`` was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks._allocation.bench import Axis, Bench, Subject
from benchmarks._allocation.methods import OWN, Method
from benchmarks._allocation.models import convolutions, detector, llama, minilm
from benchmarks._allocation.networks import Inverted, Residual
from benchmarks._allocation.peers import PEERS
from benchmarks._allocation.store import Cell, Store
from benchmarks._allocation.tables import everything

METHODS: Mapping[str, Method] = {**OWN, **PEERS}
OTHERS: Mapping[str, Callable[[int], Subject]] = {
    "minilm": minilm,
    "minilm-int8": partial(minilm, activations=True),
    "resnet": partial(convolutions, Residual),
    "mobilenet": partial(convolutions, Inverted),
    "detector": detector,
}
"""Name -> a model from the number of held-out rows."""
SCALES = 0.5
"""Budgets by file bits are those of the codes and this: a scale of 16 bits for 32 weights."""


def allocate(bench: Bench, store: Store, given: argparse.Namespace) -> None:
    """Let each method allocate, and judge it, where the store does not know yet."""
    with tempfile.TemporaryDirectory() as place:
        for axis, budget, name in cells(bench.subject, given):
            cell = store.cell(axis, budget, name)
            if "seconds" not in cell:
                _allocated(cell, bench, axis, budget, name, Path(place))
                store.save()
            if not given.allocate_only:
                _judged(cell, bench, name)
                store.save()
            print(_line(axis, budget, name, cell), flush=True)


def cells(subject: Subject, given: argparse.Namespace) -> list[tuple[Axis, float, str]]:
    """Return (axis, budget, method) of every cell that is asked for.

    The peers' last: they change modules of transformers that the process shares.
    """
    found: list[tuple[Axis, float, str]] = []
    for axis in given.by:
        extra = SCALES if axis == "file" else 0.0
        for budget in given.budgets or subject.budgets:
            found += [(axis, budget + extra, name) for name in given.methods]
    return sorted(found, key=lambda cell: cell[2] in PEERS)


def _allocated(
    cell: Cell, bench: Bench, axis: Axis, budget: float, name: str, place: Path
) -> None:
    realizer = bench.realizer("rtn")  # not a part of any method's time
    del realizer
    began = time.perf_counter()
    found = METHODS[name](bench, axis, budget, place)
    cell["seconds"] = time.perf_counter() - began
    cell["allocation"] = found.allocation and dict(found.allocation)
    cell["used"], cell["note"] = found.used, found.note


def _judged(cell: Cell, bench: Bench, name: str) -> None:
    if cell["allocation"] is None:
        return
    judged = cell.setdefault("judged", {})
    for rounding in bench.subject.roundings:
        searched = name.partition("octavo ")[2]
        if rounding in judged or searched not in ("", rounding):
            continue
        judged[rounding] = asdict(bench.judged(cell["allocation"], rounding))


def _line(axis: str, budget: float, name: str, cell: Cell) -> str:
    head = f"{axis} {budget:<5g} {name:<14}"
    if cell["allocation"] is None:
        return f"{head} {cell['note']}"
    figures = [
        f"{rounding} {1000 * sum(j['distances']) / len(j['distances']):.3f}"
        for rounding, j in cell.get("judged", {}).items()
    ]
    used = f"used {cell['used'] / budget:.4f}"
    seconds = f"{cell['seconds']:.1f} s"
    return f"{head} {'  '.join([used, seconds, *figures, cell['note']])}"


def again(store: Store, bench: Bench, given: argparse.Namespace) -> None:
    """Allocate in a second process, from nothing, and note whether it gives the same."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "again.json"
        words = [a for a in sys.argv[1:] if a != "--twice"]
        command = [sys.executable, "-m", "benchmarks.allocation", *words]
        command += ["--allocate-only", "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        second = json.loads(out.read_text())["cells"]
    for axis, budget, name in cells(bench.subject, given):
        cell = store.cell(axis, budget, name)
        other = second[f"{axis} {budget:g} {name}"]
        if cell["allocation"] is not None:
            cell["again"] = cell["allocation"] == other["allocation"]
    store.save()


def subject_of(given: argparse.Namespace, parser: argparse.ArgumentParser) -> Subject:
    """Return the model that is asked for."""
    if given.model in OTHERS:
        return OTHERS[given.model](given.rows)
    folder = os.environ.get("OCTAVO_LM")
    if not folder:
        parser.error("set OCTAVO_LM to the language model's folder")
    return llama(Path(folder), given.rows)


def main() -> None:
    """Read the command line, allocate, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llama", choices=("llama", *OTHERS))
    parser.add_argument("--budgets", type=float, nargs="+", help="code bits a weight")
    parser.add_argument("--by", nargs="+", default=["code", "file"])
    parser.add_argument("--rows", type=int, default=16, help="held out")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=list(METHODS)
    )
    parser.add_argument("--out", type=Path, help="JSON file to go on with")
    parser.add_argument("--twice", action="store_true")
    parser.add_argument("--allocate-only", action="store_true")
    given = parser.parse_args()
    subject = subject_of(given, parser)
    store = Store(given.out, {"model": subject.name, "rows": given.rows})
    bench = Bench(subject)
    allocate(bench, store, given)
    if given.twice:
        again(store, bench, given)
    if not given.allocate_only:
        print()
        print(everything(store, subject, list(METHODS), list(PEERS)))


if __name__ == "__main__":
    main()
