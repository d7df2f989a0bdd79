"""Between which ops of a traced graph codes pass in the place of float values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.fx import Node

from octavo.adapters.pytorch.capture.graph.traced import GraphCapture
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.qlayers.simulated import is_simulated
from octavo.core.contract.adapter import OpParameters

from .quantized_layers import static_form

_MOVING_MODULES = (nn.Flatten, nn.Unflatten)
_MOVING = {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.unsqueeze, torch.squeeze,
    "flatten", "reshape", "view", "permute", "transpose", "unsqueeze", "squeeze", "contiguous",
}  # fmt: skip
_ASKING = {getattr, "size", "dim", "numel"}
"""What asks for a tensor's shape and the like, which codes have too."""


class CodeForms:
    """In which codes values of a graph are given and taken.

    Args:
        capture: The traced model.
        parameters: Op name -> what the core decided, for the ops that are quantized.

    Attributes:
        starts: First node of an op -> the op.
        ends: Last node of an op -> the op.
        gives: Op -> the codes that it gives; those that give float values are left out.
    """

    def __init__(
        self, capture: GraphCapture, parameters: Mapping[str, OpParameters]
    ) -> None:
        self._capture = capture
        self._parameters = parameters
        self.starts: dict[Node, str] = {}
        self.ends: dict[Node, str] = {}
        self._adding: dict[Node, str] = {}
        for name in parameters:
            if name not in capture.inner:
                continue
            start, *others = capture.inner[name]
            self.starts[start] = name
            self.ends[others[-1] if others else start] = name
            if name in capture.others:
                self._adding |= dict.fromkeys(others, name)
        self.gives: dict[str, Activation] = {}
        # Readers come later than what they read, so that from the back every reader's own form is
        # known.
        for end in sorted(self.ends, key=capture.order.__getitem__, reverse=True):
            name = self.ends[end]
            form = self._form_wanted(end)
            if form is not None and self._can_give(name):
                self.gives[name] = form

    def input_form(self, name: str, index: int) -> Activation | None:
        """Return the codes in which an op takes one of its inputs; None where it takes float
        values."""
        # A layer that changes its input does that and quantizes by itself.
        if name in self._capture.factors:
            return None
        return static_form(self._parameters[name], index)

    def moves(self, node: Node) -> bool:
        """True for nodes that only move or choose values: codes pass through them as well."""
        module = self._capture.sites.module(node)
        if module is None:
            return node.target in _MOVING
        return self._capture.sites.is_idle(node) or isinstance(module, _MOVING_MODULES)

    def _can_give(self, name: str) -> bool:
        """True if the op's kernel can write codes."""
        scheme = self._parameters[name].scheme
        adds = name in self._capture.others
        if (adds and scheme.mode != "static") or is_simulated(scheme):
            return False
        return scheme.input is not None and scheme.input.granularity != "token"

    def _form_wanted(self, end: Node) -> Activation | None:
        """Return the codes in which every reader of a value takes it; None if one of them wants it
        in float."""
        found: dict[tuple[float, int, int, int], Activation] = {}
        pending = [end]
        while pending:
            node = pending.pop()
            for user in node.users:
                if user.target in _ASKING:
                    continue
                if self.moves(user):
                    pending.append(user)
                    continue
                form = self._form_read(user, node)
                if form is None:
                    return None
                found[form.key()] = form
        if len(found) != 1:
            return None
        return next(iter(found.values()))

    def _form_read(self, user: Node, node: Node) -> Activation | None:
        name = self.starts.get(user)
        if name is not None:
            return self.input_form(name, 0)
        name = self._adding.get(user)
        is_added = name is not None and self._capture.others[name] is node
        if name is None or not is_added or name not in self.gives:
            return None
        return self.input_form(name, 1)
