"""A module with a recipe carried out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import named_tensors
from octavo.adapters.pytorch.run.batches import takes, to_arrays, to_call
from octavo.adapters.pytorch.run.profiling import profile
from octavo.core.contract.adapter import Batch, Candidate, OpParameters
from octavo.core.errors import DataError, OctavoError, said
from octavo.core.values.calls import Call as Given
from octavo.core.values.calls import shown
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe

from .files.origin import Origin


class TorchCandidate(Candidate):
    """An ``nn.Module`` in eval mode that shares every float tensor with the original.

    Args:
        module: The module.
        ledger: What became of each op.
        device: Where it runs.
        origin: What it was made from.
        places: Path of a module -> the op that it belongs to; empty where that is not known.
    """

    def __init__(
        self,
        module: nn.Module,
        ledger: Mapping[str, Applied],
        device: torch.device,
        origin: Origin,
        places: Mapping[str, str] | None = None,
    ) -> None:
        self.module = module
        self.ledger = dict(ledger)
        self.recipe = origin.recipe
        self.parameters = dict(origin.parameters)
        self.biases = dict(origin.biases)
        self.factors = dict(origin.factors)
        self._facts = dict(origin.facts)
        self._device = device
        self._places = dict(places or {})

    @property
    def origin(self) -> Origin:
        """What it was made from."""
        return Origin(
            self.recipe, self._facts, self.parameters, self.biases, self.factors
        )

    @property
    def native(self) -> nn.Module:
        """The module itself."""
        return self.module

    def decided(self) -> Mapping[str, OpParameters]:
        """Return what the core decided for each op."""
        return self.parameters

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Run one batch: arrays in, arrays out.

        Raises:
            DataError: If the batch does not run.
        """
        args, kwargs = to_call(batch, self.module, self._device)
        try:
            with torch.no_grad():
                return to_arrays(self.module(*args, **kwargs))
        except OctavoError:
            raise
        # What a stranger's forward raises on a batch that is not its own has no bounds.
        except Exception as error:
            wanted = takes(self.module)
            got = shown(Given(*args, **kwargs), wanted.positional)
            raise DataError(
                f"the model takes {wanted}; the batch ({got}) does not run: {said(error)}"
            ) from error

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``model.json``."""
        from .files.saved import save

        save(self.module, self.origin, folder)

    def profile(self, batch: Batch, seconds: float) -> Mapping[str, float]:
        """Return the milliseconds of each op in a call, of those that are modules."""
        if not self._places:
            return {}
        device = self._device
        return profile(
            self.module, lambda: self.run(batch), self._places, device, seconds
        )

    def bytes_by_op(self) -> Mapping[str, int]:
        """Return the bytes of each op's tensors in the file."""
        if not self._places:
            return {}
        from .files.saved import bytes_by_op

        return bytes_by_op(self.module, self.origin, self._places)

    def fingerprint(self) -> str:
        """Sums of the bits of all parameters and buffers.

        Cheap enough to take before and after every evaluation.
        """
        tensors = named_tensors(self.module)
        return " ".join(f"{name}:{bit_sum(tensor)}" for name, tensor in tensors.items())


GIVEN: Mapping[str, Any] = {"kind": "given"}
"""How a candidate was seen that is the model as it was given."""


def given_candidate(root: nn.Module, device: torch.device) -> TorchCandidate:
    """Return a float model as a candidate, without stand-ins."""
    return TorchCandidate(root, {}, device, Origin(Recipe(backend="torch"), GIVEN))


def digest(module: nn.Module) -> str:
    """Return a digest of a module's tensors by name, and of its layers' types."""
    total = hashlib.sha256()
    for path, child in module.named_modules():
        total.update(f"{path} {type(child).__name__}\n".encode())
    for name, tensor in named_tensors(module).items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous()
        if plain.numel():
            total.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def bit_sum(tensor: torch.Tensor) -> int:
    """Return the sum of a tensor's bits, taken as integers."""
    plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    # Four bytes at a time, which is faster; the last few one by one.
    whole = plain.numel() // 4 * 4
    words, rest = plain[:whole].view(torch.int32), plain[whole:]
    return int(words.sum(dtype=torch.int64)) + int(rest.sum(dtype=torch.int64))
