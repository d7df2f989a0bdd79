"""What a session is fed: what it says of its inputs, as the core's feeding takes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.core.values.graph import InputInfo

_NUMPY = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
"""Types by ONNX Runtime's names; what it takes for others (texts, sequences) it says itself."""


def input_infos(inputs: Iterable[Any]) -> tuple[InputInfo, ...]:
    """Return the inputs of a session.

    Args:
        inputs: ``InferenceSession.get_inputs()``.
    """
    return tuple(map(_input_info, inputs))


def _input_info(declared: Any) -> InputInfo:
    dtype = _NUMPY.get(declared.type, declared.type)
    # A value of unknown rank is declared like one without axes: what it takes, the runtime says.
    if not declared.shape:
        return InputInfo(declared.name, None, dtype)
    shape = tuple(map(_known_length, declared.shape))
    return InputInfo(declared.name, shape, dtype)


def _known_length(axis: object) -> int | None:
    """Return the length of an axis; None for one with a name, which takes any length."""
    return axis if isinstance(axis, int) and axis >= 0 else None
