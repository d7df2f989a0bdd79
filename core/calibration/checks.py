"""What is asked of every leaf of a batch: does it fit, is it finite, its bytes, its digest."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from octavo.core.errors import DataError
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.calls import Batch, named_leaves
from octavo.core.values.graph import InputInfo
from octavo.core.values.trees import PLAIN, is_array

from .reading import REMEDY


def check_batch(
    batch: Batch, inputs: tuple[InputInfo, ...], names: tuple[str, ...], index: int
) -> None:
    """Look at every leaf of a batch.

    Raises:
        DataError: If one is not finite, of a shape that the model's file does not take, or neither
            array nor plain value.
    """
    expected = {i.name: i for i in inputs}
    for path, leaf in named_leaves(batch, names):
        where = f"calibration batch {index}, input {path!r}"
        if is_array(leaf):
            _check_array(leaf, expected.get(path), where)
        elif not isinstance(leaf, PLAIN):
            kind = type(leaf).__name__
            raise DataError(
                f"{where}: {kind} is no array, container or plain value; {REMEDY}"
            )


def _check_array(array: Any, info: InputInfo | None, where: str) -> None:
    declared = info.shape if info is not None else None
    shape = tuple(int(d) for d in array.shape)
    if declared is not None and not _fits(declared, shape):
        want = ", ".join("any" if d is None else str(d) for d in declared)
        raise DataError(f"{where}: expected shape ({want}), got {shape}")
    if not _is_finite(array):
        raise DataError(f"{where} holds NaN or Inf; remove those samples")


def _fits(declared: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    if len(declared) != len(shape):
        return False
    return all(
        wanted in (None, got) for wanted, got in zip(declared, shape, strict=True)
    )


def _is_finite(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        kind = array.dtype.kind
        if kind == "V":
            # bfloat16 and the 8-bit floats of ml_dtypes are no dtypes of the Array API standard.
            array = array.astype(np.float32)
        elif kind not in "fc":
            return True
    array = _dense(array)
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, ("real floating", "complex floating")):
        return True
    return bool(xp.all(xp.isfinite(array)))


def _dense(array: Any) -> Any:
    """Return a tensor with all of its numbers in place; sparse ones have layouts of their own."""
    layout = str(getattr(array, "layout", "torch.strided"))
    return array if layout == "torch.strided" else array.to_dense()


def leaf_bytes(leaf: Any) -> int:
    """Return the bytes that a leaf of a batch takes; 0 for plain values."""
    found = getattr(_dense(leaf), "nbytes", 0)
    return int(found) if isinstance(found, (int, np.integer)) else 0


def digest_leaf(digest: hashlib._Hash, name: str, leaf: Any, between: str = "") -> None:
    """Take a named leaf into a digest: an array by its content, a plain value by what it prints."""
    if not is_array(leaf):
        plain = between.join((name, type(leaf).__name__, repr(leaf)))
        digest.update(plain.encode())
        return
    array = np.ascontiguousarray(to_numpy(_dense(leaf)))
    head = between.join((name, str(array.dtype), str(array.shape)))
    digest.update(head.encode())
    # Arrays of Python objects have no bytes of their own.
    content = (
        str(array).encode() if array.dtype == object else array.view(np.uint8).data
    )
    digest.update(content)
