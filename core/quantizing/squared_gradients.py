"""Squared gradients of weights: what a backend's gradients tell of each weight's importance."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from octavo.core.contract.adapter import Opened, Session
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array
from octavo.core.values.graph import Op

from .observing import Observation
from .probing import ProbePlan

_FEATURE = "gradients"
_NEED = "importance by gradients"


class Gradients:
    """Mean squared gradients over the calibration batches: the diagonal of the Fisher matrix.

    One pass over the batches finds those of all weights that any scheme of the space asks for; they
    take the memory of these weights in float32.

    Args:
        opened: The session.
        plan: Knows which weights ask.
        observation: Has the batches.
    """

    def __init__(
        self, opened: Opened, plan: ProbePlan, observation: Observation
    ) -> None:
        self._opened = opened
        self._plan = plan
        self._observation = observation
        self._found: WeakKeyDictionary[Session, dict[str, Array]] = WeakKeyDictionary()

    def squares(self, op: Op, session: Session) -> Array:
        """Return E[g^2] of an op's weight, in its shape.

        Args:
            op: The op.
            session: The float model, as it is after transforms.

        Raises:
            SchemeError: If the backend has no gradients.
            DataError: If there is no calibration data that can be read again.
        """
        assert op.weight is not None
        found = self._found.setdefault(session, {})
        if op.weight.name not in found:
            self._observe(op, session, found)
        return found[op.weight.name]

    def _observe(self, op: Op, session: Session, found: dict[str, Array]) -> None:
        assert op.weight is not None
        if _FEATURE not in self._opened.capability.features:
            raise SchemeError(
                f"op {op.name!r}: {self._opened.name} offers no gradients; weigh by the inputs "
                '(importance = "inputs"), or take a backend that differentiates (torch)'
            )
        by_inputs = 'weigh by the inputs (importance = "inputs")'
        batches = self._observation.batches_for(op.name, _NEED, by_inputs)
        sums: dict[str, Array] = {}
        names = (*self._plan.weights_that_need("gradient_square"), op.weight.name)

        def add(name: str, gradient: Array) -> None:
            square = gradient * gradient
            sums[name] = sums[name] + square if name in sums else square

        count = session.gradients(batches, tuple(dict.fromkeys(names)), add)
        for name, total in sums.items():
            found[name] = total / max(1, count)
