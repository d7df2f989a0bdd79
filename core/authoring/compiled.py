"""A candidate for runtimes that are given a graph and compile it: OpenVINO, LiteRT, TensorRT, Core
ML."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from octavo.core.contract.candidate import Candidate
from octavo.core.errors import DataError, raised_as
from octavo.core.values.calls import Batch, Call, plainest, shown
from octavo.core.values.graph import InputInfo
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.trees import is_array

from .feeding import feed
from .recipes import write_recipe


class CompiledCandidate(Candidate):
    """A graph with a recipe carried out, compiled when it is first run.

    A subclass gives :meth:`compile`, :meth:`run_compiled`, :meth:`to_bytes`, :meth:`from_bytes`
    and :meth:`write`; where the ledger is read in what was compiled, :meth:`executed` too. The rest
    stands here: feeding, the callable that a score function gets, pickling, fingerprint, and twins
    under another ledger. What else a subclass keeps must be picklable.

    Args:
        model: The runtime's graph, not compiled; it is not changed any more.
        recipe: What was asked for.
        ledger: What became of each op; None where :meth:`executed` tells.
        inputs: What the model takes, in call order.

    Attributes:
        model: The runtime's graph.
        inputs: What the model takes, in call order.
    """

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        ledger: Mapping[str, Applied] | None,
        inputs: Sequence[InputInfo],
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.inputs = tuple(inputs)
        self._held = _Held()
        self.ledger = _LateLedger(self) if ledger is None else ledger

    # What a subclass gives

    @abstractmethod
    def compile(self) -> Any:
        """Return :attr:`model` ready to run. Called once, when it is first needed."""

    @abstractmethod
    def run_compiled(
        self, compiled: Any, fed: Mapping[str, np.ndarray]
    ) -> Sequence[np.ndarray]:
        """Run what :meth:`compile` returned.

        Args:
            compiled: The compiled model.
            fed: Input name -> array, checked and in the order of :attr:`inputs`.

        Returns:
            The outputs in the order of ``ModelView.outputs``; arrays of their own, and no memory
            that the next call overwrites.
        """

    @abstractmethod
    def to_bytes(self) -> bytes:
        """Return :attr:`model`, weights included, as bytes: it is pickled and digested by them."""

    @abstractmethod
    def from_bytes(self, data: bytes) -> Any:
        """Return the graph of :meth:`to_bytes`; settings that were kept in ``self`` are there."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the runtime's own files; recipe and ledger are written beside them.

        Args:
            folder: There, and empty.
        """

    def executed(self, compiled: Any) -> Mapping[str, Applied]:
        """Return the ledger as the compiled model shows it; used where none was given.

        Args:
            compiled: What :meth:`compile` returned.
        """
        raise NotImplementedError("give CompiledCandidate a ledger, or define executed")

    # What stands here

    @property
    def compiled(self) -> Any:
        """What :meth:`compile` returned; twins under another ledger share it."""
        return self._held.get(self.compile)

    @property
    def native(self) -> CompiledCallable:
        """The callable: arrays in, an array or a tuple of them out."""
        return CompiledCallable(self)

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Run one batch, and return all outputs.

        Raises:
            DataError: If names, shapes or dtypes are not the model's, or the runtime cannot run it
                on them.
        """
        fed = feed(batch, self.inputs)
        compiled = self.compiled
        with raised_as(DataError, f"the runtime cannot run the model on {shown(fed)}"):
            return tuple(self.run_compiled(compiled, fed))

    def save(self, folder: Path) -> None:
        """Write the runtime's own files, and ``octavo.recipe.json`` beside them."""
        self.write(folder)
        write_recipe(folder, self)

    def fingerprint(self) -> str:
        """Digest of the graph with its weights."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        del state["_held"]
        state["model"] = self.to_bytes()
        state["ledger"] = dict(self.ledger)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._held = _Held()
        self.model = self.from_bytes(state["model"])


class CompiledCallable:
    """A compiled model as a function; picklable, and compiled again where it arrives.

    Attributes:
        candidate: What it runs.
    """

    def __init__(self, candidate: CompiledCandidate) -> None:
        self.candidate = candidate

    @property
    def model(self) -> Any:
        """The runtime's graph."""
        return self.candidate.model

    @property
    def compiled(self) -> Any:
        """The runtime's compiled model."""
        return self.candidate.compiled

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Run the model.

        Args:
            *arrays: Inputs in the model's order; or one mapping, tuple or list that holds all.
            **named: Inputs by name.

        Returns:
            The output array, or a tuple of them where the model has several.

        Raises:
            DataError: If names, shapes or dtypes are not the model's.
        """
        outputs = self.candidate.run(as_batch(arrays, named))
        return outputs[0] if len(outputs) == 1 else outputs


def as_batch(arrays: Sequence[Any], named: Mapping[str, Any]) -> Batch:
    """Return what a callable was given as one batch.

    One mapping, tuple, list of arrays or :class:`~octavo.core.values.calls.Call` alone is the batch
    itself; a list of numbers is an array to be.
    """
    if len(arrays) != 1:
        return plainest(arrays, named)
    (only,) = arrays
    if isinstance(only, Mapping):
        return {**only, **named}
    if named:
        return plainest(arrays, named)
    if isinstance(only, (tuple, Call)):
        return only
    if isinstance(only, list) and all(is_array(item) for item in only):
        return tuple(only)
    return plainest(arrays, named)


class _Held:
    """A compiled model, made by the first who asks; candidates that differ in their ledger alone
    share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._made: list[Any] = []

    def get(self, make: Any) -> Any:
        with self._lock:
            if not self._made:
                self._made.append(make())
        return self._made[0]


class _LateLedger(Mapping[str, Applied]):
    """The lines that a candidate's compiled model shows, read when somebody asks."""

    def __init__(self, candidate: CompiledCandidate) -> None:
        self._candidate = candidate
        self._read: Mapping[str, Applied] | None = None

    def _lines(self) -> Mapping[str, Applied]:
        if self._read is None:
            self._read = self._candidate.executed(self._candidate.compiled)
        return self._read

    def __getitem__(self, name: str) -> Applied:
        return self._lines()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines())

    def __len__(self) -> int:
        return len(self._lines())
