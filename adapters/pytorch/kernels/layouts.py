"""What kernels make of a weight, kept while the weight's tensor lives.

Keyed on the tensor itself, so that an eager layer, an operator inside a compiled program and
another candidate with the same codes share one layout, and so that no layout is part of a module's
state, of a graph or of a file.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

Tensor = torch.Tensor
Layouts = dict[object, Any]
_known: dict[int, tuple[weakref.ref[Tensor], int, Layouts]] = {}
"""Number of a tensor object -> the tensor, how often it was written to, and its layouts."""


def layouts(tensor: Tensor) -> Layouts:
    """Return the layouts of a tensor as it is now.

    They are empty for a new tensor and for one that was written to.
    """
    key = id(tensor)
    version = version_of(tensor)
    entry = _known.get(key)
    if entry is not None and entry[0]() is tensor and entry[1] == version:
        return entry[2]

    def drop(gone: weakref.ref[Tensor]) -> None:
        now = _known.get(key)
        # The number of a dead tensor may be another one's by now.
        if now is not None and now[0] is gone:
            del _known[key]

    made: Layouts = {}
    _known[key] = weakref.ref(tensor, drop), version, made
    return made


def layout(tensor: Tensor, key: object, make: Callable[[], Any]) -> Any:
    """Return what ``make`` makes of a tensor; it is made at the first call."""
    known = layouts(tensor)
    found = known.get(key)
    if found is None:
        found = known[key] = make()
    return found


def forget(tensor: Tensor) -> None:
    """Drop a tensor's layouts, where it may have been written to uncounted (in inference mode)."""
    _known.pop(id(tensor), None)


def content(tensor: Tensor | None) -> bytes:
    """Return a tensor's bytes, for the key of a layout that holds its numbers too.

    They are read from it once.
    """
    if tensor is None:
        return b""

    def read() -> Any:
        return tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()

    found: bytes = layout(tensor, "content", read)
    return found


def version_of(tensor: Tensor | None) -> int:
    """Return how often a tensor was written to; 0 where nobody counts."""
    if tensor is None or tensor.is_inference():
        return 0
    return tensor._version
