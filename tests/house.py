"""The house rules that no linter has: ``python -m tests.house`` prints what breaks them, and ``make
check`` runs it.

- A conditional expression holds no other one; a comprehension has at most two clauses (``for`` and
``if`` together).
- A file over 350 lines or a folder of more than twenty modules has its reason in
``docs/architecture.md``, in the table
  under "Large files and folders".
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("core", "adapters", "strategies", "src")
REASONS = ROOT / "docs" / "architecture.md"

MOST_LINES = 350
MOST_MODULES = 20
MOST_CLAUSES = 2

Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def modules(root: Path) -> Iterator[Path]:
    """Yield the project's modules; the links in src lead to folders that are walked by
    themselves."""
    for source in SOURCES:
        for path in sorted((root / source).rglob("*.py")):
            if not any(folder.is_symlink() for folder in path.parents):
                yield path


def is_nested(expression: ast.IfExp) -> bool:
    """True if a conditional expression holds another, however deep."""
    inner = [*ast.walk(expression)][1:]
    return any(isinstance(node, ast.IfExp) for node in inner)


def clauses(comprehension: Comprehension) -> int:
    """Return how many ``for`` and ``if`` clauses a comprehension has."""
    return sum(1 + len(generator.ifs) for generator in comprehension.generators)


def dense_expressions(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, what is wrong) for expressions that hold more than one thought."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.IfExp) and is_nested(node):
            yield (
                node.lineno,
                "a conditional expression inside another: name the inner one",
            )
        if isinstance(node, Comprehension) and clauses(node) > MOST_CLAUSES:
            yield (
                node.lineno,
                f"a comprehension of {clauses(node)} clauses: name a part of it",
            )


def reasons(page: str) -> set[str]:
    """Return the paths that have a reason: the first column of the table under its heading."""
    _, _, rest = page.partition("## Large files and folders")
    table = rest.partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \| .*\w", table, re.MULTILINE))


def large(root: Path, excused: set[str]) -> Iterator[str]:
    """Yield what is wrong with files and folders that are large without a reason, and with reasons
    of small ones."""
    found: set[str] = set()
    count: dict[Path, int] = {}
    for path in modules(root):
        count[path.parent] = count.get(path.parent, 0) + 1
        name = path.relative_to(root).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            found.add(name)
            if name not in excused:
                yield f"{name}: {lines} lines; split it by idea, or write its reason down"
    for folder, number in count.items():
        name = folder.relative_to(root).as_posix()
        if number > MOST_MODULES:
            found.add(name)
            if name not in excused:
                yield f"{name}: {number} modules; divide it, or write its reason down"
    for name in sorted(excused - found):
        yield f"{name}: it is not large, and docs/architecture.md gives a reason for it"


def problems(root: Path = ROOT) -> Iterator[str]:
    """Yield everything that breaks a rule, one line each."""
    for path in modules(root):
        name = path.relative_to(root).as_posix()
        for line, wrong in dense_expressions(path.read_text(encoding="utf-8")):
            yield f"{name}:{line}: {wrong}"
    yield from large(root, reasons(REASONS.read_text(encoding="utf-8")))


def main() -> None:
    """Print the problems; the exit code is 1 where there are any."""
    found = list(problems())
    for problem in found:
        print(problem)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
