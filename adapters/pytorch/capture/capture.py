"""What a model looks like to octavo, and how quantized layers are put into it.

Two ways of seeing a model, behind one face: :class:`~.graph.GraphCapture` has the traced graph, so
batch norms and residual adds are folded and integer tensors pass between layers;
:class:`~.modules.ModuleCapture` only has the module tree, which every model has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any, Self

from torch import nn

from octavo.adapters.pytorch.run.device_offload import Lender
from octavo.core.values.graph import Group, Op

from .layers import Layer
from .links import InputMaps, Link


class Capture(ABC):
    """A model that was looked at once. ``root`` is a skeleton that nobody else changes.

    Attributes:
        layers: Op name -> layer.
        groups: See :class:`~octavo.core.values.graph.Group`.
        links: Rescale groups with the tensors that they change.
        factors: Op name -> what it does to its input's channels first.
        outputs: Names of the model's outputs.
        notes: What was out of reach and why.
        reasons: Parameter that no layer holds -> why not, where the example's run showed it.
        lender: Brings the tensors of ``root`` to where runs of the float model compute; None where
            they are there.
    """

    lender: Lender | None = None
    reasons: Mapping[str, str] = MappingProxyType({})

    root: nn.Module
    layers: Mapping[str, Layer]
    groups: tuple[Group, ...]
    links: Mapping[str, Link]
    factors: InputMaps
    outputs: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ops(self) -> tuple[Op, ...]:
        """What the core is told of: the layers in execution order, and what else was seen."""
        return tuple(layer.op for layer in self.layers.values())

    @property
    @abstractmethod
    def end(self) -> int:
        """Place behind all others, see :meth:`span`."""

    @abstractmethod
    def span(self, values: Collection[str]) -> tuple[int, int]:
        """Return the last place at which a run may start that is to meet all these values, and the
        first at which it may stop.

        Places are numbers that grow along a run; 0 is the model's inputs.
        """

    @abstractmethod
    def before_readers(self, values: Collection[str]) -> int:
        """Return a place at which no op that reads one of these values has run."""

    @abstractmethod
    def on(self, root: nn.Module, factors: InputMaps) -> Capture:
        """Return the same view over another skeleton of the same structure (rescaled weights)."""

    def lent_by(self, lender: Lender | None) -> Self:
        """Return the same view, of which a lender brings the tensors to where runs compute.

        None where the tensors are there.
        """
        lent = copy(self)
        lent.lender = lender
        return lent

    @property
    @abstractmethod
    def has_branches(self) -> bool:
        """Whether other batches than those that were run may take other branches of the model."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Return what a saved model needs to be seen the same way again, JSON-ready."""
