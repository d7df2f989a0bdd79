"""A model that stays where it is while its modules compute on another device.

Each one's tensors go there for its own call.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from octavo.adapters.pytorch.kernels.arithmetic import LinearArithmetic
from octavo.adapters.pytorch.modules.shared_copy import skeleton

Tensor = torch.Tensor
Table = dict[str, Any]
"""A module's parameters or buffers by name."""


def _own_tensors(module: nn.Module) -> list[tuple[Table, str, Tensor]]:
    """Return the tensors that a module holds itself, each with its table and name."""
    tables: tuple[Table, Table] = (module._parameters, module._buffers)
    every = [(table, key, value) for table in tables for key, value in table.items()]
    return [(table, key, value) for table, key, value in every if value is not None]


class Lender:
    """Brings tensors to a device.

    What a run of the float model needs is there for one module's call; what a candidate keeps of
    the float model is there once for all candidates, and gone with the last of them.

    Args:
        device: Where to.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._settled: Any = WeakTensorKeyDictionary()

    def is_there(self, tensor: Tensor) -> bool:
        """True if a tensor need not be moved."""
        return tensor.device == self.device

    def bring(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor on the device, of a parameter a frozen one.

        Where it is there already it is the tensor itself.
        """
        if self.is_there(tensor):
            return tensor
        there = tensor.detach().to(self.device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(there, requires_grad=False)
        return there

    def lend(self, root: nn.Module) -> None:
        """Let each module of a skeleton have its own tensors on the device while it runs.

        No longer than that.
        """
        for module in root.modules():
            if _own_tensors(module):
                loan = _Loan(self)
                # Before the hooks that observe, and after them even where the module raises.
                module.register_forward_pre_hook(loan.begin, prepend=True)
                module.register_forward_hook(loan.end, always_call=True)

    def settled(self, root: nn.Module) -> nn.Module:
        """Return a skeleton with every tensor on the device; ties stay."""
        twin = skeleton(root)
        for module in twin.modules():
            for table, key, value in _own_tensors(module):
                table[key] = self._there(value)
            weight = module.__dict__.get("weight")
            # What stands for a quantized layer's weight tells its device.
            if isinstance(weight, Tensor):
                module.__dict__["weight"] = self.bring(weight)
            if isinstance(module, LinearArithmetic):
                module.choose()
        return twin

    def _there(self, tensor: Tensor) -> Tensor:
        if self.is_there(tensor):
            return tensor
        known = self._settled.get(tensor)
        found: Tensor | None = known() if known is not None else None
        if found is None:
            found = self.bring(tensor)
            self._settled[tensor] = weakref.ref(found)
        return found


class _Loan:
    """One module's tensors on their way."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._lent: list[tuple[Table, str, Tensor, Tensor]] = []

    def begin(self, module: nn.Module, _: Any) -> None:
        # A run that was ended in the middle (by what needed no more of it) has left them where
        # they are.
        if self._lent:
            return
        for table, key, value in _own_tensors(module):
            if not self._lender.is_there(value):
                table[key] = self._lender.bring(value)
                self._lent.append((table, key, value, table[key]))

    def end(self, module: nn.Module, *_: Any) -> None:
        lent, self._lent = self._lent, []
        for table, key, value, there in lent:
            # Else the module has put something new in its place.
            if table.get(key) is there:
                table[key] = value
