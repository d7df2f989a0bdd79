"""What a model looks like to octavo, and how quantized layers are put into it.

Two ways of seeing a model, behind one face: :class:`~.graph.GraphCapture` has the traced graph, so batch norms and
residual adds are folded and integer tensors pass between layers; :class:`~.modules.ModuleCapture` only has the module
tree, which every model has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.run.batches import Call
from octavo.adapters.pytorch.run.device_offload import Lender
from octavo.core.contract.adapter import OpParameters
from octavo.core.values.graph import Group, Op

from .layers import Layer
from .links import Factors, Link


class Halt(BaseException):
    """Ends a run that has met all it was to meet. No error: a model that handles its own must not take it for one."""


class Watch(ABC):
    """A run of the float model, or of a stretch of it, that hands out values on its way."""

    @abstractmethod
    def __call__(self, call: Call, kept: Mapping[int, Any] | None = None) -> Mapping[int, Any]:
        """Run from where the watch starts to the last value that it was asked for.

        Args:
            call: One batch.
            kept: For a later start than the model's own: what another watch returned for this batch.

        Returns:
            Place -> what a run that starts there needs of this one.
        """


class Capture(ABC):
    """A model that was looked at once. ``root`` is a skeleton that nobody else changes.

    Attributes:
        layers: Op name -> layer.
        groups: See :class:`~octavo.core.values.graph.Group`.
        links: Rescale groups with the tensors that they change.
        factors: Op name -> what it does to its input's channels first.
        outputs: Names of the model's outputs.
        notes: What was out of reach and why.
        end: Place behind all others, see :meth:`span`.
        reasons: Parameter that no layer holds -> why not, where the example's run showed it.
        lender: Brings the tensors of ``root`` to where runs of the float model compute; None where they are there.
    """

    lender: Lender | None = None
    reasons: Mapping[str, str] = MappingProxyType({})

    root: nn.Module
    layers: Mapping[str, Layer]
    groups: tuple[Group, ...]
    links: Mapping[str, Link]
    factors: Factors
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
    end: int

    @property
    def ops(self) -> tuple[Op, ...]:
        """What the core is told of: the layers in execution order, and what else was seen."""
        return tuple(layer.op for layer in self.layers.values())

    @abstractmethod
    def span(self, values: Collection[str]) -> tuple[int, int]:
        """Return the last place at which a run may start that is to meet all these values, and the first at which it may stop.

        Places are numbers that grow along a run; 0 is the model's inputs.
        """

    @abstractmethod
    def watch(
        self, values: Collection[str], sink: Callable[[str, torch.Tensor], None], start: int = 0
    ) -> Watch:
        """Return a runner of the float model that hands each named value to ``sink``.

        Args:
            values: What to hand out.
            sink: Takes (name, tensor).
            start: Place where runs start: 0, or one that another watch kept, and no later than the first value.
        """

    @abstractmethod
    def resumes(self, call: Call) -> bool:
        """Return whether runs that start where others stopped give what a whole run gives, bit for bit."""

    @abstractmethod
    def build(
        self, parameters: Mapping[str, OpParameters], biases: Mapping[str, torch.Tensor | None]
    ) -> tuple[nn.Module, Mapping[str, str]]:
        """Return a runnable module with the given ops quantized, and op -> remark for the ledger."""

    @abstractmethod
    def on(self, root: nn.Module, factors: Factors) -> Capture:
        """Return the same view over another skeleton of the same structure (rescaled weights)."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Return what a saved model needs to be seen the same way again, JSON-ready."""
