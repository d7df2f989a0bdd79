"""The optimum of a simulated problem, by integer programming over whole blocks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from octavo.core.numerics.knapsack import exact
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace, Unit


class _Combination(NamedTuple):
    """What the units of a block choose together."""

    cost: float
    loss: float
    choices: tuple[int, ...]


@dataclass(frozen=True)
class Blocks:
    """Units whose losses meet only inside their blocks.

    Attributes:
        space: The units, four choices each.
        losses: Unit name -> loss of each choice, as a share of the tolerated loss.
        couplings: (unit, unit) -> J, within blocks.
        factor: What a transform multiplies all losses with.
    """

    space: TuningSpace
    losses: Mapping[str, np.ndarray]
    couplings: Mapping[tuple[str, str], float]
    factor: float

    def cheapest(self) -> dict[str, OpScheme]:
        """Return the choices of the least cost whose loss is tolerated (gap 1e-4)."""
        blocks = self._blocks()
        # Couplings stay inside blocks, so that a block's combinations are exact choices.
        combinations = [self._combinations(block) for block in blocks]
        costs = []
        losses = []
        for rows in combinations:
            costs.append(np.array([row.cost for row in rows]))
            losses.append(np.array([row.loss for row in rows]))
        picks = exact(costs, [(losses, 1.0)], gap=1e-4)
        chosen = {}
        for block, rows, pick in zip(blocks, combinations, picks, strict=True):
            best_row = rows[pick]
            for unit, i in zip(block, best_row.choices, strict=True):
                chosen[unit.name] = unit.choices[i]
        return chosen

    def _blocks(self) -> list[tuple[Unit, ...]]:
        """Return the units whose choices depend on each other, together."""
        if not self.couplings:
            return [(unit,) for unit in self.space.units]
        groups = itertools.groupby(self.space.units, key=lambda unit: unit.block)
        return [tuple(units) for _, units in groups]

    def _combinations(self, block: tuple[Unit, ...]) -> list[_Combination]:
        """Return a block's combinations that no other one beats, by cost."""
        places = [range(len(unit.choices)) for unit in block]
        picked = itertools.product(*places)
        rows = sorted(self._combination(block, picks) for picks in picked)
        kept: list[_Combination] = []
        for row in rows:
            if not kept or row.loss < kept[-1].loss:
                kept.append(row)
        return kept

    def _combination(
        self, block: tuple[Unit, ...], picks: tuple[int, ...]
    ) -> _Combination:
        alone = []
        cost = 0.0
        for unit, i in zip(block, picks, strict=True):
            losses = self.losses[unit.name]
            alone.append(float(losses[i]))
            cost += unit.weight_bytes(unit.choices[i])
        together = 0.0
        for i, j in itertools.combinations(range(len(block)), 2):
            pair = (block[i].name, block[j].name)
            coupling = self.couplings.get(pair, 0.0)
            together += coupling * np.sqrt(alone[i] * alone[j])
        loss = float(sum(alone) + together)
        return _Combination(cost, loss * self.factor, picks)
