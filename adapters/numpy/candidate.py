"""One candidate: a graph to run, with the recipe it was made by and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from octavo.adapters.numpy.files.archive import save_graph
from octavo.adapters.numpy.run.kernels import Kernels
from octavo.adapters.numpy.run.profiling import bytes_by_op, profile
from octavo.adapters.numpy.run.program import Program
from octavo.core.authoring.compiled import as_batch
from octavo.core.authoring.recipes import ledger_to_json
from octavo.core.contract.adapter import Batch, Candidate
from octavo.core.errors import ModelError, raised_as
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe

from .graph import Graph

MODEL = "model.npz"
"""The file that a saved candidate's folder holds."""


class NumpyCandidate(Candidate):
    """A program with its recipe and ledger.

    Args:
        graph: What it runs.
        recipe: What was asked for.
        ledger: What became of each op.
        kernels: Makes its kernels.
        known: Names of the nodes that the float model has; None where that is not known any more.
    """

    def __init__(
        self,
        graph: Graph,
        recipe: Recipe,
        ledger: Mapping[str, Applied],
        kernels: Kernels,
        known: Collection[str] | None = None,
    ) -> None:
        self.graph = graph
        self.recipe = recipe
        self.ledger = ledger
        self._kernels = kernels
        self._known = known
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        """The runnable form, built at first use."""
        if self._program is None:
            remedy = "the file is damaged; save the model again"
            with raised_as(ModelError, "the graph cannot be run", remedy):
                self._program = Program(self.graph, self._kernels)
        return self._program

    @property
    def native(self) -> Callable[..., Any]:
        """The candidate itself: a callable, arrays in, arrays out."""
        return self

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Run the model on arrays in the order of its inputs, or by name.

        Returns:
            One output as an array, several as a tuple.
        """
        result = self.run(as_batch(arrays, named))
        return result[0] if len(result) == 1 else result

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Run one batch."""
        program = self.program
        return program.run(program.feed(batch))

    def save(self, folder: Path) -> None:
        """Write ``model.npz``: structure, arrays, recipe and ledger."""
        told = {
            name: line for name, line in self.ledger.items() if not _says_nothing(line)
        }
        ledger = ledger_to_json(told, self.recipe)
        save_graph(
            self.graph, folder / MODEL, recipe=self.recipe.to_json(), ledger=ledger
        )

    def profile(self, batch: Batch, seconds: float) -> Mapping[str, float]:
        """Return the milliseconds of each op in a call."""
        if self._known is None:
            return {}
        arrays = self.program.feed(batch)
        return profile(self.program, arrays, self._known, seconds)

    def bytes_by_op(self) -> Mapping[str, int]:
        """Return the bytes of each op's arrays in the file."""
        return {} if self._known is None else bytes_by_op(self.graph, self._known)

    def fingerprint(self) -> str:
        """Digest of the graph it runs."""
        return self.graph.fingerprint()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "graph": self.graph,
            "recipe": self.recipe,
            "ledger": dict(self.ledger),
            "scratch": self._kernels.scratch,
            "threads": self._kernels.threads,
            "known": self._known,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        kernels = Kernels(state["scratch"], state["threads"])
        NumpyCandidate.__init__(
            self,
            state["graph"],
            state["recipe"],
            state["ledger"],
            kernels,
            state["known"],
        )


def _says_nothing(line: Applied) -> bool:
    """True for an op that nobody asked for, and of which nothing is to be told."""
    return line.requested.is_float and line.applied.is_float and not line.reason
