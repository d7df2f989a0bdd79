"""Which tensors of the model a folded constant was computed from.

That is what coverage counts in its place.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from octavo.core.values.coverage import counts
from octavo.core.values.graph import HeldWeight

_SOURCES = "octavo.sources"
_NAMES = {"float": "float32", "double": "float64"}


def dtype_name(dtype: ir.DataType) -> str:
    """Return NumPy's name of a tensor's type."""
    name = dtype.name.lower()
    return _NAMES.get(name, name)


def held(value: ir.Value) -> HeldWeight | None:
    """Return a constant as a weight; None for what is no floating tensor of two or more axes."""
    tensor = value.const_value
    if tensor is None:
        return None
    shape = tuple(tensor.shape.numpy())
    dtype = dtype_name(tensor.dtype)
    if not counts(shape, dtype):
        return None
    return HeldWeight(value.name or "", shape, dtype)


def sources(value: ir.Value) -> tuple[HeldWeight, ...] | None:
    """Return the weights that a constant was computed from; None for a tensor of the model itself.

    Empty for what was computed from no weight at all: a mask, a table of positions.
    """
    found: tuple[HeldWeight, ...] | None = value.meta.get(_SOURCES)
    return found


def record(made: ir.Value, inputs: Iterable[ir.Value]) -> None:
    """Write down what a folded constant was computed from."""
    if _SOURCES in made.meta:
        return  # equal results are one constant, which stands for what it was computed from first
    found: dict[str, HeldWeight] = {}
    for value in inputs:
        known = sources(value)
        if known is None:
            own = held(value)
            known = (own,) if own is not None else ()
        found.update((weight.name, weight) for weight in known)
    made.meta[_SOURCES] = tuple(found.values())
