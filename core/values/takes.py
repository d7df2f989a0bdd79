"""What a model's call takes, and how what a loader yields becomes such a call."""

from __future__ import annotations

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
        stars = ["*" * self.any_positional and "*args", "*" * self.any_keyword and "**kwargs"]
        listed = [
            name if name in self.required else f"{name} (optional)"
            for name in (*self.positional, *further)
        ]
        return (
            ", ".join(
                [*(listed if self.required else (*self.positional, *further)), *filter(None, stars)]
            )
            or "nothing"
        )

    def names(self, name: str) -> bool:
        """True if a value may be given by this name."""
        return self.any_keyword or name in self.keywords

    def problem(self, call: Call) -> str:
        """Return why the model cannot be called so; empty if it can."""
        if len(call.args) > len(self.positional) and not self.any_positional:
            return (
                f"the model takes {len(self.positional)} inputs ({self}); the batch has "
                f"{len(call.args)}"
            )
        given = {*self.positional[: len(call.args)]}
        for name in call.kwargs:
            if not self.names(name):
                return (
                    f"the model takes {self}; got an input called "
                    f"{name!r}{nearest(name, self.keywords)}"
                )
            if name in given:
                return f"input {name!r} is given twice, in order and by name"
        missing = [
            n
            for n in (*self.positional, *self.keywords)
            if n in self.required - given - call.kwargs.keys()
        ]
        if missing:
            return f"input {missing[0]!r} is missing: the model takes {self}"
        if not self.trees:
            for name, value in (
                *zip(self.positional, call.args, strict=False),
                *call.kwargs.items(),
            ):
                if not is_array(value):
                    return (
                        f"input {name!r}: {type(value).__name__} is no array; give NumPy "
                        "arrays or tensors"
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
