"""What an objective is."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from octavo.core.values.trial import Measurement

from .adapter import Batch, Candidate
from .parts import PartConfig


class Subject:
    """A candidate under measurement, with its saved files (written once, on first use).

    Attributes:
        candidate: What is measured.
        batch: A batch in a form that its backend takes.
    """

    def __init__(self, candidate: Candidate, batch: Batch) -> None:
        self.candidate = candidate
        self.batch = batch

    @cached_property
    def folder(self) -> Path:
        """Folder with the saved model."""
        folder = Path(tempfile.mkdtemp(prefix="octavo-"))
        self.candidate.save(folder)
        return folder

    @cached_property
    def bytes(self) -> int:
        """Size of the saved files."""
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())

    def close(self) -> None:
        """Remove the saved files."""
        if "folder" in self.__dict__:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Turns:
    """What several candidates measured that took turns with the float model in one run.

    Attributes:
        measured: A measurement for each candidate, in their order. Where the intervals ``low`` to
            ``high`` of two do not meet, their medians differ at 5 %.
        rounds: How often each had its turn.
    """

    measured: tuple[Measurement, ...]
    rounds: int


Enough = Callable[[Turns], bool]
"""Whether what was measured so far decides, or nothing more can be done."""


class Objective(ABC):
    """A number to minimise (or maximise), measured on the real candidate.

    Attributes:
        unit: Of the value.
        lower_is_better: Its direction.
        varies: Whether two measurements of one model differ with the minute, so that the best few
            are measured once more :meth:`in_turns`.
    """

    unit: ClassVar[str] = ""
    lower_is_better: ClassVar[bool] = True
    varies: ClassVar[bool] = False

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    def check(self) -> None:  # noqa: B027 - most objectives can be measured anywhere
        """Refuse a machine that cannot measure it; called before long work starts.

        Raises:
            ConfigError: If it cannot.
        """

    @abstractmethod
    def measure(self, subject: Subject, reference: Subject) -> Measurement:
        """Measure a candidate.

        Args:
            subject: The candidate.
            reference: The float model, for interleaving and ratios.
        """

    def in_turns(
        self, subjects: Sequence[Subject], reference: Subject, enough: Enough
    ) -> Turns | None:
        """Measure several candidates and the float model in one run, until it is enough.

        For what varies from one minute to the next. Ranks of such figures are only known when they
        were taken side by side.

        Args:
            subjects: The candidates.
            reference: The float model.
            enough: Asked after each round from the third on.

        Returns:
            The measurements; None for an objective whose figures are as good as they can be.
        """
        return None
