"""What scores cost before they are asked for, in runs of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo.core.values.scheme import OpScheme

from .curvature import Curvature
from .hessian_traces import HessianTraces
from .op_errors import OpErrors, Transforms
from .output_distance import OutputDistance

AT_OUTPUTS = ("output_distance", "gradient", "hessian_trace")
"""Kinds in the unit of the distance of the outputs, which may be compared in several ways."""


def of_one_unit(kind: str) -> tuple[str, ...]:
    """Return the kinds whose losses compare with those of a kind, itself first."""
    if kind not in AT_OUTPUTS:
        return (kind,)
    return tuple(dict.fromkeys((kind, *AT_OUTPUTS)))


@dataclass(frozen=True)
class Prices:
    """Knows what each kind runs.

    Attributes:
        errors: Finds ``weight_error`` and ``hessian``.
        distance: Finds ``output_distance``.
        curvature: Finds ``gradient``.
        traces: Finds ``hessian_trace``.
    """

    errors: OpErrors
    distance: OutputDistance
    curvature: Curvature
    traces: HessianTraces

    def of(
        self, missing: Mapping[str, Sequence[OpScheme]], transforms: Transforms
    ) -> int:
        """Return the runs of a batch that finding scores out costs.

        Args:
            missing: Kind -> the schemes whose losses are not known, one for each pair.
            transforms: The transforms that they are asked under.
        """
        runs = sum(self._of_kind(k, s, transforms) for k, s in missing.items())
        # All of them look at the float model's outputs once, but what another backend lends.
        own = [k for k in missing if k != "gradient" or not self.curvature.borrowed]
        looks = any(kind in AT_OUTPUTS for kind in own)
        return runs + (self.distance.price if looks else 0)

    def _of_kind(
        self, kind: str, schemes: Sequence[OpScheme], transforms: Transforms
    ) -> int:
        if kind == "output_distance":
            return len(schemes) * len(self.errors.batches)
        if kind == "gradient":
            with_inputs = any(scheme.input is not None for scheme in schemes)
            return self.curvature.price(with_inputs=with_inputs)
        runs = self.errors.price(transforms)
        if kind == "hessian_trace":
            runs += self.traces.price(transforms)
        return runs
