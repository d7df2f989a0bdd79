"""What a session is fed: one batch, checked against its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octavo.core.contract.adapter import Batch
from octavo.core.errors import DataError, nearest
from octavo.core.values.calls import Call, flat

Expected = Mapping[str, Any]
"""Name of an input -> what a session says of it (``onnxruntime.NodeArg``)."""

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


def feeds(inputs: Sequence[Any], batch: Batch | Any) -> dict[str, np.ndarray]:
    """Check one batch against a session's inputs and return it by name.

    Args:
        inputs: ``InferenceSession.get_inputs()``.
        batch: By name, in call order, or one array for a model with one input.

    Raises:
        DataError: Expected against got.
    """
    expected = {info.name: info for info in inputs}
    given = _named(batch, expected)
    for name in expected:
        if name not in given:
            got = ", ".join(given) or "nothing"
            raise DataError(
                f"the batch lacks input {name!r}: expected {_listed(expected)}, got {got}"
            )
    fed = {}
    for name, value in given.items():
        info = expected[name]
        fed[name] = _checked(info, value)
    return fed


def _named(batch: Batch | Any, expected: Expected) -> dict[str, Any]:
    """Return what a batch holds by the names of the inputs, whichever way it is written."""
    if isinstance(batch, list):
        batch = tuple(batch)
    if isinstance(batch, Mapping | tuple | Call):
        batch = flat(batch, tuple(expected))
    if isinstance(batch, Mapping):
        return _by_name(batch, expected)
    if isinstance(batch, tuple | list):
        rows = batch
    else:
        rows = (batch,)
    return _in_order(rows, expected)


def _by_name(batch: Mapping[str, Any], expected: Expected) -> dict[str, Any]:
    for name in batch:
        if name not in expected:
            raise DataError(
                f"the batch holds {name!r}, which is no input of this model"
                f"{nearest(name, expected)} (expected {_listed(expected)})"
            )
    return dict(batch)


def _in_order(rows: Sequence[Any], expected: Expected) -> dict[str, Any]:
    got = len(rows)
    wanted = len(expected)
    if got > wanted:
        raise DataError(
            f"the batch holds {got} arrays, "
            f"the model takes {wanted}: {_listed(expected)}"
        )
    return dict(zip(expected, rows, strict=False))


def _listed(expected: Expected) -> str:
    inputs = [f"{name}: {info.type} {info.shape}" for name, info in expected.items()]
    return ", ".join(inputs)


def _checked(info: Any, value: Any) -> np.ndarray:
    """Return a value as an array of an input's type; one of another shape is refused."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()  # a tensor of PyTorch
    array = np.asarray(value)
    wanted = _NUMPY.get(info.type)
    if wanted is not None and array.dtype != wanted:
        # float64 is taken for float32, and int32 for int64; a float for an integer is not.
        is_of_kind = np.can_cast(array.dtype, wanted, "same_kind")
        if not is_of_kind:
            raise DataError(
                f"input {info.name!r} takes {info.type}, got {array.dtype}; convert it"
            )
        array = array.astype(wanted)
    declared = list(info.shape or ())
    # A value of unknown rank is declared like one without axes: what it takes, the runtime says.
    if declared and not _fits(declared, array.shape):
        got = list(array.shape)
        raise DataError(f"input {info.name!r} takes shape {declared}, got {got}")
    return array


def _fits(declared: Sequence[object], shape: tuple[int, ...]) -> bool:
    """True if a shape is one that is declared; axes with a name take any length."""
    if len(declared) != len(shape):
        return False
    for axis, length in zip(declared, shape, strict=True):
        is_fixed = isinstance(axis, int) and axis >= 0
        if is_fixed and axis != length:
            return False
    return True
