"""A source read once: raw batches before the model's inputs are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from octavo.core.errors import DataError
from octavo.core.values.calls import Call, named_leaves
from octavo.core.values.trees import is_container

from .batches import Batches
from .checks import leaf_bytes
from .sources import is_factory, raw_batches

LIMIT_BYTES = 2 * 2**30
"""How much a one-shot source may hold when it is kept in memory."""


@dataclass(frozen=True)
class Raw:
    """Raw batches before the model's inputs are known: kept, or made again by a factory."""

    batches: tuple[Any, ...] | None
    factory: Callable[[], Iterable[Any]] | None

    def example(self) -> Any:
        """Return the first batch as the loader yields it, a lone array as a tuple of one.

        It may still hold labels.
        """
        if self.batches:
            first = self.batches[0]
        else:
            first = next(iter(self.factory()), None) if self.factory else None
        is_whole = is_container(first) or isinstance(first, Call)
        return first if is_whole else (first,)


def materialize(source: Any, *, limit: int = LIMIT_BYTES) -> Raw:
    """Read a source once, so that a one-shot generator is not silently empty at its second use.

    Args:
        source: An iterable of batches (lists, generators, a DataLoader), an object with
            ``get_next()`` (ONNX Runtime's CalibrationDataReader, :class:`Batches`), one array of
            samples, a mapping of input names to arrays of samples, an ``.npz`` path, or a function
            that returns any of the iterables (a factory: nothing is kept in memory).
        limit: Bytes that an iterable may take in memory.

    Raises:
        DataError: If it is empty or exceeds the limit.
    """
    if isinstance(source, Raw):
        return source
    if source is None:
        raise DataError(
            "calibration data is missing: pass calibration=, an iterable of batches, an array, "
            "an .npz path or a factory"
        )
    factory = _factory_of(source)
    if factory is None:
        return Raw(_kept(source, limit), None)
    if next(iter(factory()), None) is None:
        raise DataError(
            "the calibration factory gave no batch; it must return a fresh, non-empty iterable "
            "each time it is called"
        )
    return Raw(None, factory)


def _factory_of(source: Any) -> Callable[[], Iterable[Any]] | None:
    """Return what makes a source's batches anew, or None where they can be read only once."""
    if isinstance(source, Batches):
        return (lambda: iter(source)) if source.is_factory else None
    if is_factory(source):
        return lambda: raw_batches(source())
    return None


def _kept(source: Any, limit: int) -> tuple[Any, ...]:
    kept: list[Any] = []
    total = 0
    for index, raw in enumerate(raw_batches(source)):
        call = raw if isinstance(raw, Call) else (raw,)
        total += sum(leaf_bytes(leaf) for _, leaf in named_leaves(call))
        if total > limit:
            raise DataError(
                f"calibration data passes {limit / 2**30:.1f} GiB at batch {index}: pass a factory "
                "(a function that returns a fresh iterable), which is streamed and never kept, "
                "or fewer batches; a few hundred samples are usually enough"
            )
        kept.append(raw)
    if not kept:
        raise DataError(
            "calibration data is empty: give at least one batch "
            "(a one-shot generator may already be exhausted)"
        )
    return tuple(kept)
