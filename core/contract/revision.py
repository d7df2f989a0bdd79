"""A model whose weights are replaced one after the other, watched on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from octavo.core.numerics.affine import Array

REVISION = "revision"
"""Feature of a capability: :meth:`Session.revision` is there."""


class Revision(ABC):
    """A model of its own over the same structure; what it was made of is never changed.

    It is used in execution order: a weight is replaced after the values that come before its op
    were observed, and values are observed no earlier than those before them.
    """

    @abstractmethod
    def replace(self, name: str, weight: Array) -> None:
        """Let the model have another weight from now on.

        Args:
            name: As ``Session.tensor`` takes it.
            weight: Of the same shape, as the ops use it; float32.
        """

    @abstractmethod
    def observe(self, values: Iterable[str], sink: Callable[[str, Array], None]) -> int:
        """Do what ``Session.observe`` does with the weights that the model has now.

        The batches are those that the revision was made for, in their order.

        Returns:
            The number of batches.
        """
