"""What a model-wide transform is: it chooses factors, and an adapter's ``rescale`` applies them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import Factors
from octavo.core.values.graph import Group, ModelView, Op
from octavo.core.values.scheme import PartChoice, QuantSpec

from .calibrator import Observer, Probe
from .parts import PartConfig


class Observed(Protocol):
    """What calibration saw, as a transform may ask for it.

    :class:`octavo.core.calibration.statistics.Statistics` is one.
    """

    def __contains__(self, probe: Probe) -> bool:
        """Whether that was observed."""

    def observer(self, probe: Probe) -> Observer:
        """Return one observer.

        Raises:
            DataError: If the value was not observed that way.
        """

    def range(
        self,
        value: str,
        calibrator: PartChoice,
        spec: QuantSpec,
        axis: int | None = None,
    ) -> tuple[Array, Array]:
        """Return the (low, high) of a value, as :meth:`Calibrator.range` does.

        Raises:
            DataError: If the value was not observed that way.
        """


class Rescaling(ABC):
    """Chooses factors for ``Session.rescale``: a function-preserving change of channels."""

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    @property
    def carries(self) -> frozenset[str]:
        """What it changes: of ``scale``, ``shift``, ``rotation``.

        It leaves out what a group does not take, and the ledger says so.
        """
        return frozenset({"scale"})

    def passes_over(self, group: Group) -> str:
        """Return why it leaves a group alone that could take what it changes; empty if it does not.

        The ledger of the group's members says so.
        """
        return ""

    @abstractmethod
    def factors(
        self,
        view: ModelView,
        tensor: Callable[[str], Array],
        statistics: Observed,
        recipe_ops: Mapping[str, Op],
    ) -> Mapping[str, Factors]:
        """Choose what each group's channels are multiplied by.

        Args:
            view: The model.
            tensor: ``Session.tensor``.
            statistics: Of the session before rescaling.
            recipe_ops: The ops that may be quantized; groups without one need no factors.

        Returns:
            Group name -> factors, float32 > 0, shape (channels,), or a channel map. Groups that
            should stay as they are are left out.
        """
