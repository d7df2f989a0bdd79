"""What a backend that differentiates lends to the others: gradients and traces of the same weights.

A model that passes from one backend to another keeps its weights. Gradients belong to them, so that
a backend without any takes the other's for the errors of its own roundings: no scheme has to be the
same on both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from octavo.core.errors import OctavoError
from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.layout import to_matrix
from octavo.core.values.graph import Weight
from octavo.core.values.space import Unit

from .curvature import Lent
from .op_errors import Transforms
from .service import SensitivityService
from .shared import Signature, signatures

ALIKE = 1e-3
"""Largest difference of two weights that are one, as a share of the largest element: exporters
store float32, and transforms find their factors from each backend's own activations."""

Pair = tuple[Weight, Weight]
"""(the borrower's weight, the lender's)."""


def lend(services: Sequence[SensitivityService]) -> None:
    """Let backends without gradients take those of one that has them, and traces of the Hessian.

    Gradients are lent weight by weight, where the counterpart is the same array; traces where every
    tunable unit has a counterpart, because they are compared with each other.
    """
    lender = next((s for s in services if "gradient" in s.kinds), None)
    if lender is None:
        return
    units = lender.realizer.space.by_name
    by_signature = {
        signature: units[name]
        for name, signature in signatures(lender.realizer.space).items()
    }
    for service in services:
        if "gradient" in service.kinds:
            continue
        pairs = {
            unit.name: _counterparts(service, lender, unit, by_signature)
            for unit in service.realizer.space.tunable
        }
        every = [pair for found in pairs.values() for pair in found]
        if every:
            alike = _Alike(service, lender, every)
            service.curvature.borrowed = Lent(lender.curvature.where, alike)
        if all(pairs.values()):
            names = {own.name: its.name for own, its in every}
            service.traces.lent = partial(_traces, lender, names)


def _traces(
    lender: SensitivityService, names: Mapping[str, str], transforms: Transforms
) -> dict[str, float]:
    """Return the lender's traces under the borrower's names."""
    traces = lender.traces.traces(transforms)
    return {own: traces[other] for own, other in names.items()}


class _Alike:
    """Says which weights are the same on both backends after transforms; looked at once each.

    Args:
        service: The borrower.
        lender: Has the gradients.
        pairs: Counterparts by type, size and place.
    """

    def __init__(
        self,
        service: SensitivityService,
        lender: SensitivityService,
        pairs: Sequence[Pair],
    ) -> None:
        self._service = service
        self._lender = lender
        self._pairs = pairs
        self._known: dict[Transforms, Mapping[str, tuple[str, int]]] = {}

    def __call__(self, transforms: Transforms) -> Mapping[str, tuple[str, int]]:
        """Return own weight name -> (its name there, the channel axis there)."""
        if transforms not in self._known:
            self._known[transforms] = dict(self._found(transforms))
        return self._known[transforms]

    def _found(self, transforms: Transforms) -> Iterator[tuple[str, tuple[str, int]]]:
        try:
            mine = self._service.realizer.session(transforms)
            its = self._lender.realizer.session(transforms)
        except OctavoError:
            # Transforms that the lender cannot carry out: nothing is lent under them.
            return
        for own, other in self._pairs:
            a = _matrix(mine.tensor(own.name), own)
            b = _matrix(its.tensor(other.name), other)
            if _is_one(a, b):
                yield own.name, (other.name, other.channel_axis)


def _matrix(array: object, weight: Weight) -> np.ndarray:
    found = to_numpy(to_matrix(array, weight.channel_axis))
    return found.astype(np.float32, copy=False)


def _is_one(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or not a.size:
        return False
    most = float(np.abs(a).max())
    return bool(np.abs(a - b).max() <= ALIKE * most)


def _counterparts(
    service: SensitivityService,
    lender: SensitivityService,
    unit: Unit,
    units: Mapping[Signature, Unit],
) -> list[Pair]:
    """Return a unit's weights, each with its counterpart; none where the unit has none.

    Args:
        service: The borrower.
        lender: Has the gradients.
        unit: The borrower's.
        units: The lender's units that have weights.
    """
    signature = signatures(service.realizer.space).get(unit.name)
    if signature is None:
        return []
    other = units.get(signature)
    if other is None or not other.tunable or len(other.ops) != len(unit.ops):
        return []
    own_ops = service.opened.view.by_name
    its_ops = lender.opened.view.by_name
    found: list[Pair] = []
    for mine, its in zip(unit.ops, other.ops, strict=True):
        own_weights = own_ops[mine].weights
        its_weights = its_ops[its].weights
        if not own_weights or len(own_weights) != len(its_weights):
            return []
        found += zip(own_weights, its_weights, strict=True)
    return found
