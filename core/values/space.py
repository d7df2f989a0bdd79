"""The tuning space: what may vary where."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from octavo.core.errors import ConfigError

from .json_form import canonical_json
from .recipe import Recipe
from .scheme import FLOAT, OpScheme, PartChoice
from .sizes import scheme_bytes


def stored_form(scheme: OpScheme) -> OpScheme:
    """Return what an op takes that looks rows up where another multiplies with the same codes:
    their weight-only form."""
    if scheme.input is None:
        return scheme
    return OpScheme(
        mode="weight_only",
        weight=scheme.weight,
        algorithm=scheme.algorithm,
        refined_by=scheme.refined_by,
    )


@dataclass(frozen=True, slots=True)
class Unit:
    """Ops that take one decision: one op, or the members of a ``scheme`` group.

    Attributes:
        name: The first op's name.
        type: Their op type.
        ops: All op names, first the one that takes a choice as it is.
        choices: Schemes, the one to try first first; float is always among them and always last.
        block: Name of the repeated block it sits in (``encoder.layer.3``), or its own name.
        parameters: Number of weight elements, together.
        channels: Output channels, together: how many scales a per-channel weight needs.
        macs: Multiply-accumulates for one sample, together; 0 where unknown.
        lookups: Those of the ops that look rows up in a weight which another of them multiplies
            with (a tied embedding). Under a scheme that quantizes inputs they take its weight-only
            form, on the same codes.
        matrices: (output channels, features) of each distinct weight; () for one matrix of
            :attr:`parameters` elements in :attr:`channels` rows.
        float_width: Bytes of an element in float, a mean over the weights: 2 for a model of halves.
    """

    name: str
    type: str
    ops: tuple[str, ...]
    choices: tuple[OpScheme, ...]
    block: str = ""
    parameters: int = 0
    channels: int = 1
    macs: int = 0
    lookups: tuple[str, ...] = ()
    matrices: tuple[tuple[int, int], ...] = ()
    float_width: float = 4.0

    def schemes(self, choice: OpScheme) -> dict[str, OpScheme]:
        """Return what each op takes under a choice."""
        schemes = dict.fromkeys(self.ops, choice)
        if self.lookups:
            schemes.update(dict.fromkeys(self.lookups, stored_form(choice)))
        return schemes

    @property
    def float_bytes(self) -> float:
        """Bytes of the weights in float."""
        return self.float_width * self.parameters

    @property
    def tunable(self) -> bool:
        """True if there is more than one choice."""
        return len(self.choices) > 1

    def weight_bytes(self, scheme: OpScheme) -> float:
        """Bytes of the weights under ``scheme``, as a saved file holds them: see
        :func:`.sizes.scheme_bytes`."""
        if scheme.weight is None:
            return self.float_bytes
        rows = max(1, self.channels)
        matrices = self.matrices or ((rows, -(-self.parameters // rows)),)
        return float(sum(scheme_bytes(scheme, matrix) for matrix in matrices))


@dataclass(frozen=True)
class TuningSpace:
    """Capability x model x the user's rules, for one backend.

    Attributes:
        backend: The adapter's name.
        units: In execution order, tunable or not.
        transforms: Alternatives of model-wide transforms, in the order of each. The first is what
            every recipe has and the others begin with: mostly (), nothing.
        notes: What the rules and the capability left out, for the report.
    """

    backend: str
    units: tuple[Unit, ...]
    transforms: tuple[tuple[PartChoice, ...], ...] = ((),)
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for unit in self.units:
            if not unit.choices or unit.choices[-1] != FLOAT:
                raise ConfigError(f"unit {unit.name!r} must offer float last")
        required = self.transforms[0] if self.transforms else None
        if required is None or any(
            alternative[: len(required)] != required for alternative in self.transforms
        ):
            raise ConfigError(
                "the first alternative of a space's transforms must be (), no transform, or what "
                "all others begin with"
            )

    @property
    def required(self) -> tuple[PartChoice, ...]:
        """The transforms that every recipe has; () where none is required."""
        return self.transforms[0]

    @cached_property
    def tunable(self) -> tuple[Unit, ...]:
        """Units with a choice, in execution order."""
        return tuple(u for u in self.units if u.tunable)

    @cached_property
    def by_name(self) -> Mapping[str, Unit]:
        """Units by name."""
        return {u.name: u for u in self.units}

    @cached_property
    def types(self) -> Mapping[str, tuple[Unit, ...]]:
        """Tunable units by op type, in order of first appearance."""
        found: dict[str, list[Unit]] = {}
        for unit in self.tunable:
            found.setdefault(unit.type, []).append(unit)
        return {t: tuple(us) for t, us in found.items()}

    @property
    def size(self) -> int:
        """Number of recipes."""
        return math.prod(len(u.choices) for u in self.tunable) * len(self.transforms)

    def schemes(self, ops: Sequence[str], choice: OpScheme) -> dict[str, OpScheme]:
        """Return what each of a unit's ops takes under a choice; ops that are no unit's take it as
        it is."""
        unit = self.by_name.get(ops[0])
        if unit is None or unit.ops != tuple(ops):
            return dict.fromkeys(ops, choice)
        return unit.schemes(choice)

    def recipe(
        self,
        choice: Mapping[str, OpScheme],
        transforms: tuple[PartChoice, ...] | None = None,
    ) -> Recipe:
        """Return the recipe in which each unit takes ``choice[unit.name]``, or float where it is
        not named.

        Args:
            choice: Unit name -> scheme.
            transforms: One of :attr:`transforms`; None for :attr:`required` alone.
        """
        if transforms is None:
            transforms = self.required
        schemes: dict[str, OpScheme] = {}
        for unit in self.tunable:
            if unit.name in choice:
                schemes.update(unit.schemes(choice[unit.name]))
        return Recipe(schemes, transforms, self.backend)

    def first(self) -> dict[str, OpScheme]:
        """Return every tunable unit's first choice."""
        return {u.name: u.choices[0] for u in self.tunable}

    def contains(self, recipe: Recipe) -> bool:
        """True if the recipe is a point of this space."""
        if recipe.backend != self.backend or recipe.transforms not in self.transforms:
            return False
        free: set[str] = set()
        for unit in self.tunable:
            free.update(unit.ops)
            choice = recipe[unit.ops[0]]
            if choice not in unit.choices:
                return False
            wanted = unit.schemes(choice)
            if any(recipe[op] != scheme for op, scheme in wanted.items()):
                return False
        return free.issuperset(recipe.schemes)

    def weight_bytes(self, recipe: Recipe) -> float:
        """Bytes of all weights under a recipe."""
        return sum(u.weight_bytes(recipe[u.ops[0]]) for u in self.units)

    @cached_property
    def digest(self) -> str:
        """Content digest, 16 hex digits: a store made for another space is refused by it."""
        units = []
        for unit in self.units:
            choices = [
                scheme.model_dump(exclude_defaults=True) for scheme in unit.choices
            ]
            units.append([unit.name, list(unit.ops), choices])
        transforms = [
            [t.model_dump() for t in alternative] for alternative in self.transforms
        ]
        raw = [self.backend, units, transforms]
        return hashlib.sha256(canonical_json(raw).encode()).hexdigest()[:16]


def breadth(spaces: Iterable[TuningSpace]) -> str:
    """Return how much there is to choose, in words: ``12 ops with up to 9 choices``.

    Args:
        spaces: Of one run, one for each backend.
    """
    told = []
    for space in spaces:
        ops = sum(len(unit.ops) for unit in space.tunable)
        most = max((len(unit.choices) for unit in space.tunable), default=0)
        if ops:
            told.append((space.backend, f"{ops:,} ops with up to {most} choices"))
    if not told:
        return "nothing to choose"
    if len(told) == 1:
        return told[0][1]
    return "; ".join(f"{backend}: {words}" for backend, words in told)
