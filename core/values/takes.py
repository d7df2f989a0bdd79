"""What a model's call takes, and how what a loader yields becomes such a call."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.core.errors import nearest

from .calls import Batch, Call
from .trees import is_array


@dataclass(frozen=True)
class Takes:
    """What a model's call takes.

    Attributes:
        positional: Names of what may be given in order.
        keywords: Names of what may be given by name.
        required: Names of what must be given.
        any_positional: It takes any number of values in order.
        any_keyword: It takes any names.
        trees: A value may be a container; else each is one array.
    """

    positional: tuple[str, ...]
    keywords: tuple[str, ...]
    required: frozenset[str] = frozenset()
    any_positional: bool = False
    any_keyword: bool = False
    trees: bool = True

    def __str__(self) -> str:
        further = [name for name in self.keywords if name not in self.positional]
        told = [self._told(name) for name in (*self.positional, *further)]
        if self.any_positional:
            told.append("*args")
        if self.any_keyword:
            told.append("**kwargs")
        return ", ".join(told) or "nothing"

    def _told(self, name: str) -> str:
        # Where nothing is required, nobody knows what is optional.
        is_optional = bool(self.required) and name not in self.required
        return f"{name} (optional)" if is_optional else name

    def names(self, name: str) -> bool:
        """True if a value may be given by this name."""
        return self.any_keyword or name in self.keywords

    def problem(self, call: Call) -> str:
        """Return why the model cannot be called so; empty if it can."""
        count = len(self.positional)
        if len(call.args) > count and not self.any_positional:
            return f"the model takes {count} inputs ({self}); the batch has {len(call.args)}"
        given = set(self.positional[: len(call.args)])
        return (
            self._wrong_name(call, given)
            or self._missing(call, given)
            or (self._no_array(call) if not self.trees else "")
        )

    def _wrong_name(self, call: Call, given: Set[str]) -> str:
        for name in call.kwargs:
            if not self.names(name):
                hint = nearest(name, self.keywords)
                return f"the model takes {self}; got an input called {name!r}{hint}"
            if name in given:
                return f"input {name!r} is given twice, in order and by name"
        return ""

    def _missing(self, call: Call, given: Set[str]) -> str:
        missing = self.required - given - call.kwargs.keys()
        for name in (*self.positional, *self.keywords):
            if name in missing:
                return f"input {name!r} is missing: the model takes {self}"
        return ""

    def _no_array(self, call: Call) -> str:
        in_order = zip(self.positional, call.args, strict=False)
        for name, value in (*in_order, *call.kwargs.items()):
            if not is_array(value):
                kind = type(value).__name__
                return (
                    f"input {name!r}: {kind} is no array; give NumPy arrays or tensors"
                )
        return ""


class Reads(Protocol):
    """How what a loader yields becomes a call: ``octavo.core.calibration.reading.Reading``."""

    @property
    def takes(self) -> Takes:
        """What the model's call takes."""

    @property
    def note(self) -> str:
        """What is left out of each item, for the ledger."""

    def __call__(self, raw: Any, index: int) -> Batch:
        """Return a loader's item, the ``index``-th, in the form that sessions take."""
