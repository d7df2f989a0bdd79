"""The promise that an adapter says what a model is, and says it every time."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.contract.adapter import Opened
from octavo.core.numerics.arrays import to_numpy
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.coverage import difference
from octavo.core.values.space import TuningSpace

from .case import AdapterCase


class Describing:
    """Names, shapes, and every weight accounted for."""

    def test_describe_is_the_same_every_time(
        self, case: AdapterCase, opened: Opened
    ) -> None:
        """Names and structure do not depend on the process or on what was opened before."""
        again = case.open()
        assert again.view.digest == opened.view.digest
        assert [op.name for op in again.view.ops] == [op.name for op in opened.view.ops]
        assert again.session.fingerprint() == opened.session.fingerprint()

    def test_something_can_be_quantized(self, space: TuningSpace) -> None:
        """A case without a choice would test nothing."""
        assert space.tunable, "no op of the case's model has a scheme to choose"

    def test_weights_are_what_describe_says(self, opened: Opened) -> None:
        """``tensor`` returns the described shape, with finite values."""
        for op in opened.view.ops:
            for one in op.weights:
                weight = to_numpy(opened.session.tensor(one.name))
                assert tuple(weight.shape) == one.shape, op.name
                assert np.isfinite(weight.astype(np.float64)).all(), op.name

    def test_every_weight_is_accounted_for(
        self, opened: Opened, space: TuningSpace, realizer: Realizer
    ) -> None:
        """What ops claim and what none claims is what the census counts, quantized or not."""
        census = opened.session.census()
        if census is None:
            pytest.skip("the adapter takes no census of its own")
        names = {weight.name for weight in census}
        assert len(names) == len(census), "the census counts a tensor twice"
        has_reasons = all(weight.reason for weight in opened.view.unclaimed)
        assert has_reasons, "an unclaimed weight without a reason"
        candidate = realizer.candidate(space.recipe(space.first()))
        for model in (candidate, opened.session.reference()):
            coverage = realizer.coverage(model)
            assert difference(coverage, census) == ""
            assert coverage.quantized + coverage.kept == coverage.total
        assert realizer.coverage(candidate).quantized > 0
        assert coverage.quantized == 0, "the float model is said to be quantized"
