"""A float model whose weights are replaced one by one, observed in between."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.modules.shared_copy import (
    aliases,
    named_tensors,
    set_tensor,
    skeleton,
)
from octavo.core.contract.adapter import Sink
from octavo.core.contract.revision import Revision
from octavo.core.errors import ModelError, nearest
from octavo.core.numerics.affine import Array

from .folded_weights import folded_gain
from .staged import Calls, Resumable


class TorchRevision(Revision):
    """A skeleton of the model with tensors of its own in the places of replaced weights.

    Args:
        capture: The float model, which stays as it is.
        calls: Gives the batches; it may be called again.
        limit: Bytes that may be kept of them.
    """

    def __init__(self, capture: Capture, calls: Calls, limit: int) -> None:
        self._root = skeleton(capture.root)
        self._capture = capture.on(self._root, capture.factors)
        self._watch = Resumable(self._capture, calls, limit, is_revised=True)

    def replace(self, name: str, weight: Array) -> None:
        """Set a weight under every name that it has, as the model stores it."""
        known = named_tensors(self._root)
        if name not in known:
            first = aliases(self._root)
            if name not in first:
                raise ModelError(
                    f"the model has no tensor called {name!r}{nearest(name, known)}"
                )
            name = first[name]
        old = known[name]
        gain = folded_gain(self._capture, name)
        new = torch.as_tensor(weight)
        if gain is not None:
            new = new / gain
        new = new.detach().to(old.device, old.dtype)
        set_tensor(self._root, name, new.reshape(old.shape))

    def observe(self, values: Iterable[str], sink: Sink) -> int:
        """Run the model as it is now, from where the observation before stopped if it can."""
        return self._watch(values, sink)
