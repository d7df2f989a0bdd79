"""One batch, checked against what a model takes, as NumPy arrays by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from octavo.core.errors import DataError, nearest
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.calls import Batch, Call, flat, parts
from octavo.core.values.graph import InputInfo

_WHOLE = "biu"
_FLOATS = "fV"
"""Kinds of floats: NumPy calls bfloat16 and the 8-bit floats of ml_dtypes a void type."""


def feed(batch: Batch | Any, inputs: Sequence[InputInfo]) -> dict[str, np.ndarray]:
    """Check one batch against a model's inputs and return it by name, in the order of the inputs.

    A float of another width is converted, and whole numbers are where their values fit; a float is
    never cut to a whole number. Arrays of the right type are handed on, not copied.

    Args:
        batch: By name, in call order, or one array for a model with one input. Arrays of NumPy,
            tensors of PyTorch, or numbers.
        inputs: What the model takes. A shape of None is not checked, and neither is an axis of
            None, nor a dtype that NumPy does not know.

    Raises:
        DataError: If an input is missing, unknown, given twice, or there is one too many; if a
            shape or a dtype does not fit. The message says expected against got.
    """
    fed = _as_it_is(batch, inputs)
    if fed is not None:
        return fed
    given = _by_name(batch, inputs)
    return {info.name: _checked(info, given[info.name]) for info in inputs}


def _as_it_is(
    batch: Batch | Any, inputs: Sequence[InputInfo]
) -> dict[str, np.ndarray] | None:
    """Return a batch in which nothing is to be said or changed; None for any other.

    Most are like that, and a small model's call takes no longer than the whole check would.
    """
    given: Any = batch
    if type(given) is np.ndarray:
        given = (given,)
    is_named = type(given) is dict
    if not (is_named or type(given) is tuple) or len(given) != len(inputs):
        return None
    fed: dict[str, np.ndarray] = {}
    for index, info in enumerate(inputs):
        value = given.get(info.name) if is_named else given[index]
        if type(value) is not np.ndarray or value.dtype != _dtype_of(info.dtype):
            return None
        if info.shape is not None and not _fits(value.shape, info.shape):
            return None
        fed[info.name] = value
    return fed


def _by_name(batch: Batch | Any, inputs: Sequence[InputInfo]) -> Mapping[str, Any]:
    """Return what a batch holds by the names of the inputs, whichever way it is written."""
    names = tuple(info.name for info in inputs)
    if isinstance(batch, list):
        batch = tuple(batch)
    if isinstance(batch, (Mapping, tuple, Call)):
        _refuse_given_twice(batch, names)
        batch = flat(batch, names)
    else:
        batch = (batch,)
    if isinstance(batch, tuple):
        batch = _in_order(batch, names, inputs)
    for name in batch:
        if name not in names:
            raise DataError(
                f"the batch holds {name!r}, which is no input of this model"
                f"{nearest(str(name), names)} (expected {_listed(inputs)})"
            )
    for name in names:
        if name not in batch:
            got = ", ".join(map(str, batch)) or "nothing"
            raise DataError(
                f"the batch lacks input {name!r}: expected {_listed(inputs)}, got {got}"
            )
    return batch


def _refuse_given_twice(batch: Batch, names: Sequence[str]) -> None:
    ordered, named = parts(batch)
    if not named:
        return
    for name in names[: len(ordered)]:
        if name in named:
            raise DataError(
                f"input {name!r} is given in order and by name; give it once"
            )


def _in_order(
    values: tuple[Any, ...], names: Sequence[str], inputs: Sequence[InputInfo]
) -> dict[str, Any]:
    if len(values) > len(names):
        raise DataError(
            f"the batch holds {len(values)} arrays, "
            f"the model takes {len(names)}: {_listed(inputs)}"
        )
    return dict(zip(names, values, strict=False))


def _checked(info: InputInfo, value: Any) -> np.ndarray:
    """Return a value as an array of an input's type; one of another shape is refused."""
    array = _as_array(info, value)
    wanted = _dtype_of(info.dtype)
    if wanted is not None and array.dtype != wanted:
        array = _converted(info, array, wanted)
    if info.shape is not None and not _fits(array.shape, info.shape):
        raise DataError(
            f"input {info.name!r} takes shape {_shown(info)}, got {array.shape}"
        )
    return array


def _as_array(info: InputInfo, value: Any) -> np.ndarray:
    try:
        return to_numpy(value)
    except ValueError as error:  # lists of lists of several lengths
        raise DataError(f"input {info.name!r} is no array: {error}") from error


@lru_cache(maxsize=64)
def _dtype_of(name: str) -> np.dtype[Any] | None:
    """Return a dtype by name; None for one that neither NumPy nor ml_dtypes knows."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found = getattr(ml_dtypes, name, None)
        return None if found is None else np.dtype(found)


def _converted(info: InputInfo, array: np.ndarray, wanted: np.dtype[Any]) -> np.ndarray:
    """Return an array in another dtype.

    Raises:
        DataError: If that would change more than how precise its numbers are.
    """
    if not _is_taken(array.dtype.kind, wanted.kind):
        raise DataError(
            f"input {info.name!r} takes {info.dtype}, got {array.dtype}; convert it"
        )
    with np.errstate(over="ignore"):
        made = array.astype(wanted)
    if _fit_into(array, made):
        return made
    raise DataError(
        f"input {info.name!r} takes {info.dtype}, "
        f"got {array.dtype} with numbers that do not fit into it"
    )


def _fit_into(given: np.ndarray, made: np.ndarray) -> bool:
    """True if no number became another one than its nearest."""
    if made.dtype.kind in "iu":
        # A token's number that wraps around would be another token.
        return np.array_equal(made, given)
    if made.dtype.itemsize >= given.dtype.itemsize:
        return True
    # A number beyond the largest of a narrow type becomes infinite.
    return np.array_equal(np.isfinite(made), np.isfinite(given))


def _is_taken(given: str, wanted: str) -> bool:
    """True between types of one kind, and from whole numbers to wider kinds."""
    if given in _FLOATS:
        return wanted in _FLOATS
    if given in _WHOLE:
        return wanted in "iuf"
    return given == wanted


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    """True if a shape is the one that is declared; axes of None take any length."""
    if len(shape) != len(declared):
        return False
    for length, wanted in zip(shape, declared, strict=True):
        if wanted is not None and wanted != length:
            return False
    return True


def _listed(inputs: Sequence[InputInfo]) -> str:
    told = [f"{info.name}: {info.dtype} {_shown(info)}" for info in inputs]
    return ", ".join(told) or "no input"


def _shown(info: InputInfo) -> str:
    """Return an input's shape in words; its free axes are ``any``."""
    if info.shape is None:
        return "of any shape"
    sizes = ", ".join("any" if size is None else str(size) for size in info.shape)
    return f"({sizes})"
