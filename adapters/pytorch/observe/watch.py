"""Runs of the float model that hand out values on their way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from octavo.adapters.pytorch.run.batches import Call


class Halt(BaseException):
    """Ends a run that has met all it was to meet.

    No error: a model that handles its own must not take it for one.
    """


class Watch(ABC):
    """A run of the float model, or of a stretch of it, that hands out values on its way."""

    @abstractmethod
    def __call__(
        self, call: Call, kept: Mapping[int, Any] | None = None
    ) -> Mapping[int, Any]:
        """Run from where the watch starts to the last value that it was asked for.

        Args:
            call: One batch.
            kept: For a later start than the model's own: what another watch returned for this
                batch.

        Returns:
            Place -> what a run that starts there needs of this one.
        """
