"""How much a runner may remember of the float model.

Candidates then start where they first differ from it.
"""

from __future__ import annotations

RECALL_BYTES = 2**28
"""Bytes of remembered values, all batches together: the hidden states of a few batches of a
language model, and far less than its weights."""


class Room:
    """What is left of :data:`RECALL_BYTES`."""

    def __init__(self) -> None:
        self._left = RECALL_BYTES

    def take(self, size: int) -> bool:
        """Take so many bytes.

        Returns:
            False if there were not so many left; then nothing more is to be remembered.
        """
        self._left -= size
        return self._left >= 0
