"""What each trial tried: its schemes, and how it differs from the best.

The lists of every op of every trial are kept once, as a letter an op, and the page's script writes
them out when a trial is opened. What stands in the page without a script is a summary.
"""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from octavo.core.report.model import ReportData
from octavo.core.report.names import CARRIES_CODES, distinct, short
from octavo.core.report.text import learned
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, in_order
from octavo.core.values.trial import Trial

NAMED = 3
"""Ops of a group that are named without a script."""
SUMMED = 4
"""Schemes that the line of a trial counts; the rest is one sum."""
REASONS = 3
"""Reasons why ops run otherwise than asked that are told of a trial."""

LETTERS = string.digits + string.ascii_letters


@dataclass(frozen=True, slots=True)
class Group:
    """Ops of a trial that have something in common.

    Attributes:
        told: What that is.
        ops: Their names, in the order of the model.
    """

    told: str
    ops: tuple[str, ...]

    @property
    def named(self) -> tuple[str, ...]:
        """The first few."""
        return self.ops[:NAMED]

    @property
    def others(self) -> int:
        """How many more there are."""
        return max(0, len(self.ops) - NAMED)


@dataclass(frozen=True)
class Recipes:
    """The recipes of a run.

    Attributes:
        data: The run.
    """

    data: ReportData

    @cached_property
    def names(self) -> Mapping[OpScheme, str]:
        """Every scheme on the page with its short name, in the order in which they occur."""
        found: dict[OpScheme, None] = {FLOAT: None}
        for op in self.data.ops:
            found |= dict.fromkeys((op.line.requested, op.line.applied))
        for trial in self.data.trials:
            found |= dict.fromkeys(trial.recipe.schemes.values())
        return distinct(found)

    @cached_property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """Rows (short name, written out) of all schemes that have a short name."""
        rows = [(short, str(scheme)) for scheme, short in self.names.items()]
        return tuple((short, full) for short, full in rows if short != full)

    @cached_property
    def _ops(self) -> Mapping[str, tuple[str, ...]]:
        """Backend -> the names of its ops; of the best model's in its order."""
        found: dict[str, dict[str, None]] = {}
        if self.data.best is not None:
            names = [op.name for op in self.data.ops]
            found[self.data.best.recipe.backend] = dict.fromkeys(names)
        for trial in self.data.trials:
            own = found.setdefault(trial.recipe.backend, {})
            own |= dict.fromkeys((*trial.ledger, *trial.recipe))
        return {backend: tuple(names) for backend, names in found.items()}

    def of(self, trial: Trial) -> tuple[str, ...]:
        """Return the names of the ops of a trial's backend."""
        return self._ops.get(trial.recipe.backend, ())

    def groups(self, trial: Trial) -> list[Group]:
        """Return which ops of a trial share a scheme, the largest group first."""
        ops: dict[str, list[str]] = {}
        for name in self.of(trial):
            line = trial.ledger.get(name)
            carries = line is not None and line.carries_codes
            told = CARRIES_CODES if carries else self._short(trial.recipe, name)
            ops.setdefault(told, []).append(name)
        return _largest_first(ops)

    def _short(self, recipe: Recipe, op: str) -> str:
        scheme = recipe[op]
        return self.names.get(scheme, str(scheme))

    def differences(self, trial: Trial) -> list[Group]:
        """Return which ops take another scheme than in the best trial; empty where the two backends
        have no op in common."""
        best = self.data.best
        if best is None or best.number == trial.number:
            return []
        ops: dict[str, list[str]] = {}
        for name in self._common(trial):
            one, other = best.recipe[name], trial.recipe[name]
            if one != other:
                there = self._short(best.recipe, name)
                told = f"{self._short(trial.recipe, name)}, in the best {there}"
                ops.setdefault(told, []).append(name)
        return _largest_first(ops)

    def _common(self, trial: Trial) -> list[str]:
        """Return the ops that a trial and the best one both have."""
        best = self.data.best
        if best is None:
            return []
        own = set(self.of(trial))
        return [name for name in self.of(best) if name in own]

    def summary(self, trial: Trial) -> str:
        """Return what a trial tried, in one line."""
        count = Counter(self._what_runs(trial, op) for op in self.of(trial))
        told = [f"{number} {what}" for what, number in count.most_common(SUMMED)]
        left = sum(count.values()) - sum(n for _, n in count.most_common(SUMMED))
        if left:
            told.append(f"{left} others")
        if trial.recipe.recovery:
            told.append(learned(trial.recipe))
        return "; ".join(told) or "no op has a choice"

    def _what_runs(self, trial: Trial, op: str) -> str:
        line = trial.ledger.get(op)
        if line is not None and line.carries_codes:
            return CARRIES_CODES
        return short(trial.recipe[op])

    def beside_the_best(self, trial: Trial) -> str:
        """Return how a trial differs from the best, in one line; empty where there is nothing to
        say."""
        best = self.data.best
        if best is None:
            return ""
        if best.number == trial.number:
            return "this is the best"
        parts = list(self._other_parts(trial, best))
        count = sum(len(group.ops) for group in self.differences(trial))
        if count:
            parts.append("1 op differs" if count == 1 else f"{count} ops differ")
        elif not self._common(trial) and self.of(trial):
            parts.append("its ops have other names")
        if not parts:
            return f"the same recipe as the best (#{best.number})"
        return f"beside the best (#{best.number}): {', '.join(parts)}"

    def _other_parts(self, trial: Trial, best: Trial) -> Iterator[str]:
        if trial.recipe.backend != best.recipe.backend:
            yield f"on {trial.recipe.backend or 'another backend'}"
        own = trial.recipe.transforms
        other = best.recipe.transforms
        if own != other:
            there = in_order(other) or "none"
            yield f"transforms {in_order(own) or 'none'} instead of {there}"
        if trial.recipe.recovery != best.recipe.recovery:
            there = learned(best.recipe) or "nothing learned"
            yield f"{learned(trial.recipe) or 'nothing learned'} instead of {there}"

    def otherwise(self, trial: Trial) -> list[Group]:
        """Return which ops of a trial run otherwise than asked, by reason."""
        ops: dict[str, list[str]] = {}
        for name, line in trial.ledger.items():
            if not line.carries_codes and not line.honoured:
                reason = line.reason or "not carried out"
                ops.setdefault(reason, []).append(name)
        return _largest_first(ops)[:REASONS]

    def island(self) -> str:
        """Return all recipes as JSON that is safe inside a script element.

        A letter an op says which scheme it takes; the names of the best model's ops are those of
        the table.
        """
        best = self.data.best
        codes = {scheme: _letter(i) for i, scheme in enumerate(self.names)}
        trials: dict[str, Any] = {}
        for trial in self.data.trials:
            letters = [codes[trial.recipe[name]] for name in self.of(trial)]
            trials[str(trial.number)] = [trial.recipe.backend, "".join(letters)]
        in_table = None if best is None else best.recipe.backend
        names = {
            backend: list(ops)
            for backend, ops in self._ops.items()
            if backend != in_table
        }
        table = {
            "best": None if best is None else best.number,
            "schemes": {codes[scheme]: name for scheme, name in self.names.items()},
            "table": in_table,
            "ops": names,
            "trials": trials,
        }
        written = json.dumps(table, separators=(",", ":"), ensure_ascii=False)
        # Nothing in it may end the element or open a comment.
        for character in "<>&\u2028\u2029":
            written = written.replace(character, f"\\u{ord(character):04x}")
        return written


def _letter(index: int) -> str:
    """Return a letter for a scheme; past the alphabet, of those that need no escape."""
    if index < len(LETTERS):
        return LETTERS[index]
    return chr(0x4E00 + index - len(LETTERS))


def _largest_first(ops: Mapping[str, Sequence[str]]) -> list[Group]:
    groups = [Group(told, tuple(names)) for told, names in ops.items()]
    return sorted(groups, key=lambda group: -len(group.ops))
