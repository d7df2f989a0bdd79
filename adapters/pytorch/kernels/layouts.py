"""What kernels make of a weight, kept while the weight's tensor lives.

Keyed on the tensor itself, so that an eager layer, an operator inside a compiled program and another candidate with the same
codes share one layout, and so that no layout is part of a module's state, of a graph or of a file.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

Tensor = torch.Tensor
_known: dict[int, tuple[weakref.ref[Tensor], int, dict[object, Any]]] = {}


def layouts(tensor: Tensor) -> dict[object, Any]:
    """Return the layouts of a tensor as it is now: empty ones for a new tensor and for one that was written to."""
    key = id(tensor)
    version = version_of(tensor)
    entry = _known.get(key)
    if entry is None or entry[0]() is not tensor or entry[1] != version:

        def drop(gone: weakref.ref[Tensor]) -> None:
            # The number of a dead tensor may be another one's by now.
            if (now := _known.get(key)) is not None and now[0] is gone:
                del _known[key]

        entry = _known[key] = weakref.ref(tensor, drop), version, {}
    return entry[2]


def layout(tensor: Tensor, key: object, make: Callable[[], Any]) -> Any:
    """Return what ``make`` makes of a tensor; it is made at the first call."""
    known = layouts(tensor)
    found = known.get(key)
    if found is None:
        found = known[key] = make()
    return found


def forget(tensor: Tensor) -> None:
    """Drop a tensor's layouts, where it may have been written to without a count (in inference mode)."""
    _known.pop(id(tensor), None)


def content(tensor: Tensor | None) -> bytes:
    """Return a tensor's bytes, for the key of a layout that holds its numbers too; read from it once."""
    if tensor is None:
        return b""
    read: bytes = layout(
        tensor,
        "content",
        lambda: tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().tobytes(),
    )
    return read


def version_of(tensor: Tensor | None) -> int:
    """Return how often a tensor was written to; 0 where nobody counts."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version
