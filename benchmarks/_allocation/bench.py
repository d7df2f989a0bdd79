"""A model whose layers are given widths, and the common judge of every allocation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from octavo.core.contract.adapter import Candidate
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.opening import open_model
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import Unit

from .arithmetic import Allocation, Layer

Axis = Literal["code", "file"]
"""What a budget counts: codes alone, or all that the file holds for the weights."""

Outputs = Sequence[np.ndarray]
Distance = Callable[[Outputs, Outputs], np.ndarray]
"""Returns the distance of each row's outputs from the float model's, shape (rows,)."""

FLOAT = "32"
"""Label of a layer that stays in float."""


WIDTHS = (2.25, 2.5, 3.0, 3.5, 4.25, 5.0)
"""Budgets where layers take 2, 3, 4 or 8 bits."""


@dataclass(frozen=True)
class Subject:
    """A model and how its allocations are judged.

    Attributes:
        name: Of the model.
        model: What ``octavo.autotune`` is given.
        backend: That it runs on.
        rules: What layers may take, rounded by an algorithm.
        calibration: Batches that sensitivities and algorithms are given.
        held_out: Batches that allocations are judged on.
        distance: Of outputs from the float model's.
        unit: Of that distance.
        score: What ``octavo.autotune`` is given, on data of its own; lower is better.
        quality: What a user would measure, from a batch and its outputs: (sum, count), whose ratio
            goes through ``shown``; None where the distance says it all.
        shown: From the mean to the figure.
        roundings: That allocations are judged under.
        budgets: Bits a weight.
        has_float: Whether layers may stay in float, which small ones do at next to no price.
        language: Makes the float model of transformers, for the peers; None for other models.
        folder: Of its tokenizer.
    """

    name: str
    model: Any
    backend: str
    rules: Callable[[str], list[dict[str, Any]]]
    calibration: Sequence[Any]
    held_out: Sequence[Any]
    distance: Distance
    unit: str
    score: Callable[[Any], float]
    quality: Callable[[Any, Outputs], tuple[float, int]] | None = None
    shown: Callable[[float], float] = float
    roundings: tuple[str, ...] = ("rtn",)
    budgets: tuple[float, ...] = WIDTHS
    has_float: bool = False
    language: Callable[[], Any] | None = None
    folder: Any = None


@dataclass(frozen=True)
class Judged:
    """What an allocation costs under one rounding.

    Attributes:
        distances: Of each held-out row.
        quality: Perplexity, for a language model; None elsewhere.
        file_bits: Bits a weight that the candidate's own tensors take.
        seconds: That rounding took.
    """

    distances: Sequence[float]
    quality: float | None
    file_bits: float
    seconds: float

    @property
    def distance(self) -> float:
        """The mean distance."""
        return float(np.mean(self.distances))


@dataclass
class Bench:
    """One subject, opened once, calibrated once for each rounding.

    Attributes:
        subject: What is judged.
    """

    subject: Subject
    _realizers: dict[str, Realizer] = field(default_factory=dict)
    _references: dict[int, list[Outputs]] = field(default_factory=dict)

    @cached_property
    def host(self) -> PluginHost:
        """The built-in parts."""
        return PluginHost(third_party=False)

    @cached_property
    def opened(self) -> Any:
        """The float model's session."""
        example = self.subject.calibration[0]
        return open_model(self.subject.model, self.host, example=example)

    def realizer(self, rounding: str) -> Realizer:
        """Return what makes candidates under a rounding; calibrated when first asked for."""
        if rounding not in self._realizers:
            rules = [Rule.model_validate(r) for r in self.subject.rules(rounding)]
            space = build_space(self.opened, rules, simulated=True)
            made = Realizer(self.opened, space, self.host)
            made.calibrate(self.subject.calibration)
            self._realizers[rounding] = made
        return self._realizers[rounding]

    @cached_property
    def units(self) -> Mapping[str, Unit]:
        """The units that are given a width, in execution order."""
        return {u.name: u for u in self.realizer("rtn").space.tunable}

    def choices(self, unit: str, rounding: str = "rtn") -> dict[str, OpScheme]:
        """Return label -> scheme of a unit, the narrowest first; the first of each width."""
        found: dict[str, OpScheme] = {}
        space = self.realizer(rounding).space
        for scheme in space.by_name[unit].choices:
            found.setdefault(f"{scheme.weight_bits}", scheme)
        return dict(sorted(found.items(), key=lambda item: int(item[0])))

    def layers(self, axis: Axis) -> list[Layer]:
        """Return what each unit may take, in bits of an axis."""
        found = []
        for name, unit in self.units.items():
            bits: dict[str, float] = {}
            for label, scheme in self.choices(name).items():
                if label == FLOAT and not self.subject.has_float:
                    continue
                code = float(scheme.weight_bits)
                whole = 8 * unit.weight_bytes(scheme) / unit.parameters
                bits[label] = code if axis == "code" else whole
            found.append(Layer(name, unit.parameters, bits))
        return found

    def recipe(self, allocation: Allocation, rounding: str) -> Recipe:
        """Return an allocation as octavo writes it; layers that it leaves out stay in float."""
        space = self.realizer(rounding).space
        schemes: dict[str, OpScheme] = {}
        for name, label in allocation.items():
            scheme = self.choices(name, rounding)[label]
            schemes.update(space.by_name[name].schemes(scheme))
        return Recipe(schemes, (), space.backend)

    def allocation(self, recipe: Recipe) -> dict[str, str]:
        """Return the widths that a recipe of octavo's own search gives."""
        found = {}
        for name, unit in self.units.items():
            scheme = recipe.schemes.get(unit.ops[0])
            found[name] = f"{scheme.weight_bits}" if scheme else FLOAT
        return found

    def judged(self, allocation: Allocation, rounding: str) -> Judged:
        """Round an allocation and hold its outputs against the float model's, on held-out rows."""
        realizer = self.realizer(rounding)
        began = time.perf_counter()
        candidate = realizer.candidate(self.recipe(allocation, rounding))
        seconds = time.perf_counter() - began
        rows, quality = self.measured(candidate, self.subject.held_out)
        return Judged(rows, quality, self._file_bits(candidate), seconds)

    def measured(
        self, candidate: Candidate, batches: Sequence[Any]
    ) -> tuple[list[float], float | None]:
        """Return the distance of each row of some batches, and the quality over all of them."""
        rows: list[float] = []
        total, count = 0.0, 0
        references = self._float_outputs(batches)
        for batch, expected in zip(batches, references, strict=True):
            outputs = candidate.run(batch)
            rows.extend(float(d) for d in self.subject.distance(outputs, expected))
            if self.subject.quality is not None:
                part, items = self.subject.quality(batch, outputs)
                total, count = total + part, count + items
        return rows, self.subject.shown(total / count) if count else None

    def _float_outputs(self, batches: Sequence[Any]) -> list[Outputs]:
        kept = self._references.get(id(batches))
        if kept is None:
            reference = self.opened.session.reference()
            kept = [reference.run(batch) for batch in batches]
            self._references[id(batches)] = kept
        return kept

    def _file_bits(self, candidate: Candidate) -> float:
        sizes = candidate.bytes_by_op() or {}
        of_units = [op for unit in self.units.values() for op in unit.ops]
        parameters = sum(unit.parameters for unit in self.units.values())
        return 8 * sum(sizes.get(op, 0) for op in of_units) / parameters
