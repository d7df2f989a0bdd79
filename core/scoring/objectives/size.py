"""Bytes of the saved model."""

from __future__ import annotations

from octavo.core.contract.objective import Objective, Subject
from octavo.core.values.trial import Measurement


class Size(Objective):
    """The sum of the files that ``Candidate.save`` writes: what is shipped. Exact."""

    unit = "bytes"

    def measure(self, subject: Subject, reference: Subject) -> Measurement:
        """Return the bytes and their share of the float model's."""
        value = float(subject.bytes)
        ratio = value / reference.bytes if reference.bytes else None
        return Measurement(value, value, value, self.unit, ratio)
