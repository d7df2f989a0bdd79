"""A runtime of one matrix product, that is given a graph and compiles it: what backends are like,
small enough to lie in one place at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octavo.plugin import (
    Applied,
    Batch,
    Candidate,
    Capability,
    CompiledCandidate,
    InputInfo,
    ModelView,
    Op,
    OpParameters,
    Recipe,
    Session,
    Sink,
    Weight,
    feed,
)

INPUTS = (InputInfo("x", (None, 8)),)
WEIGHT = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
EXAMPLE = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)


@dataclass
class Graph:
    """y = round(x) @ weight.T, and as many outputs as are asked for."""

    weight: np.ndarray
    scale: float = 0.0
    zero_point: int = 0
    outputs: int = 1


class ToyCandidate(CompiledCandidate):
    """Counts how often it is compiled."""

    compilations = 0

    def __init__(self, *given: Any, shift: np.ndarray | None = None) -> None:
        super().__init__(*given)
        self.shift = shift

    def compile(self) -> Any:
        type(self).compilations += 1
        return self.model

    def run_compiled(
        self, compiled: Any, fed: Mapping[str, np.ndarray]
    ) -> Sequence[np.ndarray]:
        x = fed["x"]
        if compiled.scale:
            codes = np.round(x / compiled.scale) + compiled.zero_point
            x = (np.clip(codes, 0, 255) - compiled.zero_point) * compiled.scale
        y = (x @ compiled.weight.T).astype(np.float32)
        if self.shift is not None:
            y = y + self.shift
        return [y * (i + 1) for i in range(compiled.outputs)]

    def to_bytes(self) -> bytes:
        kept = {**vars(self.model), "weight": self.model.weight.tolist()}
        return json.dumps(kept).encode()

    def from_bytes(self, data: bytes) -> Graph:
        kept = json.loads(data)
        return Graph(**{**kept, "weight": np.array(kept["weight"], np.float32)})

    def write(self, folder: Path) -> None:
        (folder / "model.toy").write_bytes(self.to_bytes())

    def executed(self, compiled: Any) -> Mapping[str, Applied]:
        return {
            name: Applied(self.recipe[name], self.recipe[name]) for name in self.recipe
        }


Lie = Callable[[Recipe, Mapping[str, OpParameters], Graph], Graph | ToyCandidate]


@dataclass
class ToySession(Session):
    """One linear op; ``lie`` changes what it made of a recipe."""

    lie: Lie | None = None
    op: Op = field(
        default_factory=lambda: Op(
            "fc", "linear", ("x",), ("y",), Weight("w", WEIGHT.shape)
        )
    )

    def describe(self) -> ModelView:
        return ModelView((self.op,), inputs=INPUTS, outputs=("y",))

    def capability(self) -> Capability:
        return Capability("toy")

    def observe(
        self, batches: Iterable[Batch], values: Iterable[str], sink: Sink
    ) -> int:
        wanted = set(values)
        count = 0
        for batch in batches:
            x = feed(batch, INPUTS)["x"]
            for name, array in (("x", x), ("y", x @ WEIGHT.T)):
                if name in wanted:
                    sink(name, array)
            count += 1
        return count

    def tensor(self, name: str) -> np.ndarray:
        return WEIGHT

    def carry_out(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> Candidate:
        graph = Graph(WEIGHT)
        if "fc" in parameters:
            given = parameters["fc"]
            if given.weight is not None:
                graph.weight = given.weight.dequantize()
            if given.inputs and given.inputs[0] is not None:
                graph.scale = float(given.inputs[0].scale)
                graph.zero_point = int(given.inputs[0].zero_point)
        made = graph if self.lie is None else self.lie(recipe, parameters, graph)
        if isinstance(made, ToyCandidate):
            return made
        return ToyCandidate(made, recipe, None, INPUTS)

    def reference(self) -> Candidate:
        return ToyCandidate(Graph(WEIGHT), Recipe({}), {}, INPUTS)

    def fingerprint(self) -> str:
        return "toy"


__all__ = ["EXAMPLE", "INPUTS", "WEIGHT", "Graph", "ToyCandidate", "ToySession"]
