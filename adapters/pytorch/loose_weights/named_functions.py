"""What the name of a function says of the tensor that it is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .refs import Ref

SAME = ("detach", "contiguous", "clone", "requires_grad_")
"""Functions that give a weight as it is: nobody writes into it."""
_TURNED = ("t", "mt", "adjoint", "numpy_T")
_EXCHANGED = ("transpose", "swapaxes", "swapdims")
_DTYPES = {
    "float": torch.float32,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "double": torch.float64,
}


def viewed(ref: Ref, name: str, args: tuple[Any, ...]) -> Ref | None:
    """Return what a function makes of a view; None where that is no view again."""
    count = len(ref.shape)
    if name == "mt" or (name in _TURNED and count == 2):
        return ref.turned()
    if name in _EXCHANGED and len(args) == 2:
        return ref.turned(*args)
    if name == "permute":
        is_listed = len(args) == 1 and isinstance(args[0], list | tuple)
        order = args[0] if is_listed else args
        if len(order) == count:
            return ref.permuted(order)
    # One matrix of three axes, as a mixture's forward picks one expert.
    if name == "__getitem__" and ref.axes == (0, 1, 2):
        index = args[0]
        # A bool is an int to Python, and a mask to torch.
        if type(index) is int:
            return ref.row(index)
    return None


def writes(name: str) -> bool:
    """Return whether a method writes into its tensor, as its name tells."""
    if name in ("__setitem__", "__set__"):
        return True
    ends_in_one = name.endswith("_") and not name.endswith("__")
    return ends_in_one and name not in SAME


def dtype_asked(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> torch.dtype | None:
    """Return the type that a cast asks for; None where the function is no cast, or does more."""
    if name in _DTYPES and not args:
        return _DTYPES[name]
    if name == "type_as" and len(args) == 1:
        kind: torch.dtype = args[0].dtype
        return kind
    if name not in ("to", "type"):
        return None
    asked = list(args)
    if "dtype" in kwargs:
        asked.append(kwargs["dtype"])
    if len(asked) == 1 and isinstance(asked[0], torch.dtype):
        return asked[0]
    return None
