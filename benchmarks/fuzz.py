"""Mutated models, results, histories and settings: each must work or end in an OctavoError. Run:
python -m benchmarks.fuzz

Cases run in a child process, which is started again when it crashes or hangs, so that a parser's
segmentation fault is a
finding and not the end. A case is drawn from the seed, its number and the families alone: ``--case
N`` runs one again and shows what it raised.
Bar (issue of only typed errors): no bare exception, no crash, no hang.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks._fuzzing.child import LIMIT

ROOT = Path(__file__).resolve().parent.parent
START = 300  # seconds in which a child is ready: it imports the frameworks and builds the corpus
FAMILIES = (
    "onnx_bytes",
    "onnx_fields",
    "onnx_outside",
    "torch_modules",
    "odd_batches",
    "numpy_files",
    "numpy_graphs",
    "saved_results",
    "manifests",
    "histories",
    "configurations",
    "overrides",
    "data_files",
    "sensitivities",
    "other_files",
)


@dataclass
class Findings:
    """What came of all cases.

    Attributes:
        outcomes: (family, outcome) -> cases; outcomes are passed, typed, bare, crash and hang.
        kinds: What was bare -> cases.
        first: What was bare -> (number of its first case, its family, what it raised).
        controls: Families that fail with nothing changed, and how.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    controls: dict[str, list[str]] = field(default_factory=dict)

    def add(
        self, number: int, family: str, outcome: str, kind: str, detail: str
    ) -> bool:
        """Count a case. Returns whether it is the first of a kind that must not be."""
        self.outcomes[family, outcome] += 1
        if outcome in ("passed", "typed"):
            return False
        self.kinds[kind] += 1
        new = kind not in self.first
        self.first.setdefault(kind, (number, family, detail))
        return new

    def total(self, *outcomes: str) -> int:
        """Return the number of cases that came out so."""
        return sum(n for (_, o), n in self.outcomes.items() if o in outcomes)

    @property
    def bad(self) -> int:
        """Cases that ended in anything but success or a typed error."""
        return self.total("bare", "crash", "hang")


def fuzz(
    seconds: float,
    seed: int,
    *,
    families: tuple[str, ...] = FAMILIES,
    cases: int = sys.maxsize,
    first: int = 0,
) -> Findings:
    """Run cases until the time is over or all are done.

    Args:
        seconds: Wall time, starting the first child and building the corpus included.
        seed: Of all that is drawn.
        families: Which ones to draw from.
        cases: How many at most.
        first: Number of the first case.
    """
    findings = Findings()
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="octavo-fuzz-corpus-") as home:
        number = first
        while number < first + cases and time.monotonic() < deadline:
            number = _child(
                findings, seed, number, first + cases, Path(home), families, deadline
            )
    return findings


def _child(
    findings: Findings,
    seed: int,
    first: int,
    last: int,
    home: Path,
    families: tuple[str, ...],
    deadline: float,
) -> int:
    """Run one child to its end, its death, or the deadline; return the number of the next case."""
    command = [
        sys.executable,
        "-m",
        "benchmarks._fuzzing.child",
        str(seed),
        str(first),
        str(last),
        str(home),
        ",".join(families),
    ]
    quiet = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
    }
    environment = {**os.environ, **quiet, "OCTAVO_HOME": str(home / "octavo")}
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert child.stdout is not None
        running: tuple[int, str] | None = None
        following, patience = first, float(START)
        try:
            while time.monotonic() < deadline or (
                running is None and following == first
            ):
                said = _line(child.stdout, patience)
                if said is None:
                    break
                if "controls" in said:
                    findings.controls.update(
                        {name: failed for name, *failed in said["controls"] if failed}
                    )
                elif "begin" in said:
                    running, patience = (said["begin"], said["family"]), LIMIT + 15.0
                elif "end" in said:
                    running, following = None, said["end"] + 1
                    if findings.add(
                        said["end"],
                        said["family"],
                        said["outcome"],
                        said["kind"],
                        said["detail"],
                    ):
                        _show(
                            said["kind"],
                            seed,
                            families,
                            said["end"],
                            said["family"],
                            said["detail"],
                        )
                elif "done" in said:
                    return last
            else:
                return following
            child.kill()
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        errors.seek(0)
        told = errors.read()[-6000:]
    if running is None:
        raise RuntimeError(
            f"the child ended with {code} before or between cases:\n{told}"
        )
    hung = "Timeout (" in told or code == -9
    outcome = "hang" if hung else "crash"
    kind = f"{outcome} in {_place(told)}"
    if findings.add(*running, outcome, kind, told):
        _show(kind, seed, families, *running, told)
    return running[0] + 1


def _line(stream: IO[str], seconds: float) -> dict[str, Any] | None:
    """Return what the child says next; None where it ended, or said nothing for so long."""
    ready, _, _ = select.select([stream], [], [], seconds)
    line = stream.readline() if ready else ""
    found: dict[str, Any] | None = json.loads(line) if line else None
    return found


def _place(told: str) -> str:
    """Return the innermost frame of octavo's own in what faulthandler wrote."""
    current = told[told.find("Current thread") :] if "Current thread" in told else told
    frames = re.findall(r'File "([^"]+)", line \d+ in (\S+)', current)
    own = next(
        ((p, f) for p, f in frames if p.startswith(str(ROOT)) or "/octavo/" in p), None
    )
    return (
        f"{Path(own[0]).parent.name}/{Path(own[0]).name}:{own[1]}"
        if own
        else "outside octavo"
    )


def _show(
    kind: str,
    seed: int,
    families: tuple[str, ...],
    number: int,
    family: str,
    detail: str,
) -> None:
    lines = [line for line in detail.strip().splitlines() if line.strip()]
    only = f" --only {','.join(families)}" if families != FAMILIES else ""
    print(
        f"NEW  {kind}\n     {lines[-1][:300] if lines else ''}\n     python -m benchmarks.fuzz "
        f"--seed {seed}{only} --case {number}  ({family})",
        flush=True,
    )


def main() -> int:
    """Fuzz as the command line says; the exit code is 1 where anything but a typed
    error was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="wall time (default 20)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        default="",
        help=f"families, separated by commas: {', '.join(FAMILIES)}",
    )
    parser.add_argument(
        "--case",
        type=int,
        help="run this case alone and show what it raised; give the same --seed and --only",
    )
    given = parser.parse_args()
    families = tuple(given.only.split(",")) if given.only else FAMILIES
    if unknown := [name for name in families if name not in FAMILIES]:
        parser.error(f"there is no family {unknown[0]!r}")
    if given.case is not None:
        findings = fuzz(START, given.seed, families=families, cases=1, first=given.case)
        for kind, (_, _, detail) in findings.first.items():
            print(f"{kind}\n{detail}")
        print({f"{family}: {outcome}" for family, outcome in findings.outcomes})
        return 1 if findings.bad else 0
    findings = fuzz(given.seconds, given.seed, families=families)
    print(
        f"{'family':16}{'cases':>8}{'passed':>8}{'typed':>8}{'bare':>8}{'crash':>8}{'hang':>8}"
    )
    for family in families:
        row = [
            findings.outcomes[family, o]
            for o in ("passed", "typed", "bare", "crash", "hang")
        ]
        print(f"{family:16}{sum(row):8}" + "".join(f"{n:8}" for n in row))
    for name, failed in findings.controls.items():
        print(f"CONTROL {name} fails with nothing changed: {failed[0][-300:]}")
    for kind, count in findings.kinds.most_common():
        print(f"{count:6}  {kind}  (case {findings.first[kind][0]})")
    total = findings.total("passed", "typed", "bare", "crash", "hang")
    verdict = "met" if not findings.bad and not findings.controls else "MISSED"
    print(
        f"{total} cases, {findings.bad} bare exceptions, crashes or hangs of "
        f"{len(findings.kinds)} kinds   bar 0: {verdict}"
    )
    return 0 if verdict == "met" else 1


if __name__ == "__main__":
    sys.exit(main())
