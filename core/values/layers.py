"""What each op of a model costs and bears: the figures of a report, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

REST = "(rest)"
"""Stands among ops for what belongs to none: other steps, the call itself, other tensors."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One op of the best model beside the float model's; None where a figure is not known.

    Attributes:
        sensitivity: Loss that quantizing this op alone brings, in the unit of ``kind``.
        kind: Which sensitivity that is (``output_distance``, ``hessian``, ...); '' for none.
        scheme: The scheme that it is of: the one that the op takes, or for an op in float the one
            that would hurt least of those that were looked at; '' for none.
        unit: Ops that decide together have one sensitivity: the name of their unit; '' for an op
            that decides alone.
        error: Squared error of the quantized weight as a share of the weight's own square.
        ms: Milliseconds a call that the op takes in the best model.
        float_ms: The same in the float model, measured in the same way.
        bytes: Bytes of its parameters in the best model's file. A tensor that several ops share
            is counted with the first of them.
        float_bytes: The same in the float model's.
    """

    sensitivity: float | None = None
    kind: str = ""
    scheme: str = ""
    unit: str = ""
    error: float | None = None
    ms: float | None = None
    float_ms: float | None = None
    bytes: int | None = None
    float_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what is known, JSON-ready."""
        known = asdict(self)
        return {name: value for name, value in known.items() if value not in (None, "")}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Layer:
        """Read what :meth:`to_json` wrote; what a later version adds is left out."""
        names = cls.__dataclass_fields__
        return cls(**{name: value for name, value in raw.items() if name in names})
