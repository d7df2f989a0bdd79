"""The mutation run, judged: which changes of the methods' code does no test notice?

``make mutants`` runs mutmut over the code that ``[tool.mutmut]`` names, in a copy of the sources
(``mutants/``), and then this. A mutant that no test notices must stand in
``tests/equivalent_mutants.toml`` with the reason why it computes the same; every other one is
printed, and fails the run, as does a share of killed ones under the bar.

    python -m scripts.mutants [PATTERN...]     run, then judge; patterns of mutants' names
    python -m scripts.mutants --judge          judge what the last run left
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BAR = 0.95
"""Least share of mutants that the tests must kill, equivalent ones left out."""

EQUIVALENT = Path("tests/equivalent_mutants.toml")
COPY = Path("mutants")
_OUTCOMES: Mapping[str, frozenset[int | None]] = {
    # A test failed, or could not be collected; or the type checker refused it.
    "killed": frozenset({1, 3, 37}),
    # It ran for ever, as far as the time limit tells.
    "timed out": frozenset({24, -24, 36, 152, 255}),
    # The tests passed with it, or none runs it.
    "survived": frozenset({0, 5, 33}),
    "not tried": frozenset({None, 2, 34}),
}
"""Outcome -> mutmut's exit codes of it. Every other one decides nothing."""


@dataclass(frozen=True, order=True)
class Change:
    """What a mutant changes.

    Attributes:
        function: Where, as ``package.module.Class.function``.
        before: The line, without its indentation.
        after: What the mutant makes of it.
    """

    function: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.function}\n    - {self.before}\n    + {self.after}"


def run(patterns: Sequence[str]) -> None:
    """Make and try the mutants; what an earlier run found of unchanged code is kept.

    Raises:
        SystemExit: If mutmut fails, which it does where the tests fail without a mutant.
    """
    # Several workers share the cores: each takes one.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mutmut", "run", *patterns]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"mutmut ended with {done.returncode}")


def judge() -> int:
    """Print the shares and the survivors; return what the process should exit with.

    A run that was cut short, or in which a mutant was neither noticed nor survived, has no verdict.
    """
    reasons = equivalent_changes(EQUIVALENT)
    counts: dict[str, Counter[str]] = {}
    unexplained: list[Change] = []
    for path, codes in results(COPY):
        module = module_of(path)
        count = counts.setdefault(module.rpartition(".")[0], Counter())
        for mutant, code in codes.items():
            outcome = outcome_of(code)
            if outcome == "survived":
                change = change_of(mutant, path)
                if change in reasons:
                    outcome = "equivalent"
                else:
                    unexplained.append(change)
            count[outcome] += 1
    for change in sorted(unexplained):
        print(change)
    total: Counter[str] = Counter()
    for package, count in sorted(counts.items()):
        total += count
        print(_line(package, count))
    print(_line("all", total))
    open_ones = total["not tried"] + total["undecided"]
    if not total or open_ones:
        print(f"no verdict: {open_ones} mutants were not tried, or decided nothing")
        return 1
    return 0 if _share(total) >= BAR and not unexplained else 1


def outcome_of(code: int | None) -> str:
    """Return what an exit code of mutmut's says of a mutant."""
    found = (outcome for outcome, codes in _OUTCOMES.items() if code in codes)
    return next(found, "undecided")


def results(copy: Path) -> Iterator[tuple[Path, Mapping[str, int | None]]]:
    """Yield each mutated file, as the project names it, and mutant -> exit code of its tests."""
    for meta in sorted(copy.rglob("*.py.meta")):
        outcomes = json.loads(meta.read_text())["exit_code_by_key"]
        if outcomes:
            yield meta.relative_to(copy).with_suffix(""), outcomes


def module_of(path: Path) -> str:
    """Return the import name of a file under ``src``."""
    return ".".join(path.relative_to("src").with_suffix("").parts)


def change_of(mutant: str, path: Path) -> Change:
    """Return what a mutant changes.

    Args:
        mutant: Its name: ``module.x_function__mutmut_3`` or ``module.xǁClassǁmethod__mutmut_3``.
        path: The file, as the project names it.
    """
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    removed, added = [], []
    for line in get_diff_for_mutant(mutant, path=path).splitlines():
        if line.startswith("-") and not line.startswith("---"):
            removed.append(line[1:].strip())
        if line.startswith("+") and not line.startswith("+++"):
            added.append(line[1:].strip())
    return Change(function_of(mutant), " ".join(removed), " ".join(added))


def function_of(mutant: str) -> str:
    """Return the function of a mutant by its import name."""
    module, _, mangled = mutant.rpartition("__mutmut_")[0].rpartition(".")
    name = mangled.replace("xǁ", "").replace("ǁ", ".").removeprefix("x_")
    return f"{module}.{name}"


def equivalent_changes(path: Path) -> Mapping[Change, str]:
    """Return the changes that compute the same, each with its reason."""
    if not path.exists():
        return {}
    listed = tomllib.loads(path.read_text())["mutant"]
    return {
        Change(one["function"], one["before"], one["after"]): one["why"]
        for one in listed
    }


def _share(count: Counter[str]) -> float:
    noticed = count["killed"] + count["timed out"]
    tried = noticed + count["survived"]
    return noticed / tried if tried else 0.0


def _line(name: str, count: Counter[str]) -> str:
    told = ", ".join(f"{number} {what}" for what, number in sorted(count.items()))
    return f"{name}: {_share(count):.1%} killed ({told})"


if __name__ == "__main__":
    given = sys.argv[1:]
    if given != ["--judge"]:
        run(given)
    raise SystemExit(judge())
